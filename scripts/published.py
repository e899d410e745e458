"""Recipes of published pipelines, written from their published configurations.

    python scripts/published.py

Each file under scripts/published has what a pipeline's folder has, but for its weights and its
tokenizers, and says where the numbers come from. ``eecompile export`` of the folder itself writes
the same recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eecompile.compiler.snapshots.recipe import write_recipe

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "scripts" / "published"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def published() -> dict[str, dict[str, Any]]:
    """The files of each pipeline, ``files``, and their ``sources``, by the pipeline's name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(PUBLISHED.glob("*.json"))}


def recipe_name(pipeline: str) -> str:
    """The name of a pipeline's recipe."""
    return pipeline.lower().replace("_", "-")


def recipes() -> Iterator[tuple[str, str]]:
    """The name and the text of each pipeline's recipe, for the folder export/."""
    with TemporaryDirectory() as work:
        export = Path(work) / "export"
        export.mkdir()
        for name, each in published().items():
            folder, files = Path(work) / "checkpoints" / name, each["files"]
            for file, content in files.items():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_text(json.dumps(content))
            for part in files["model_index.json"]:
                if not part.startswith("_"):
                    (folder / part).mkdir(exist_ok=True)
            network = "unet" if (folder / "unet").is_dir() else "transformer"
            (folder / network / _WEIGHTS).touch()
            path = write_recipe(str(folder), export / f"{recipe_name(name)}.toml")
            yield path.stem, path.read_text()


def main() -> None:
    """Write the recipes."""
    for name, text in recipes():
        (ROOT / "export" / f"{name}.toml").write_text(text)
        print(f"export/{name}.toml")


if __name__ == "__main__":
    main()
