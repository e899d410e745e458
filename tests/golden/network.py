"""The first six blocks of the shipped network, with the exits 3 and 6: trained, and quick.

``python -m tests.golden.network FOLDER`` exports them where torch is, for tests where it is not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import RECIPE, exporting

_DEPTH = 6
_CHECKPOINT = "blocks.safetensors"


def export(folder: Path) -> None:
    """Write the bundle to a new folder."""
    from safetensors.numpy import load_file, save_file

    from eecompile.recipe import load_recipe

    text = re.sub(r"\[schedules\].*?\n(?=\[)", "", RECIPE.read_text(), flags=re.DOTALL)
    shipped = load_recipe(RECIPE).network.checkpoint
    for old, new in (
        ("depth = 12", f"depth = {_DEPTH}"),
        (r"exits = \[.*\]", f"exits = [3, {_DEPTH}]"),
        ('checkpoint = ".*"', f'checkpoint = "{_CHECKPOINT}"'),
        ('schedule = "half"', 'schedule = "full"'),
    ):
        text, count = re.subn(old, new, text)
        assert count == 1, old
    tensors = load_file(RECIPE.parent / shipped)
    for key in list(tensors):
        block = re.match(r"blocks\.(\d+)\.", key)
        if block and int(block[1]) >= _DEPTH:
            del tensors[key]
    with TemporaryDirectory() as place:
        recipe = Path(place) / "recipe.toml"
        recipe.write_text(text)
        save_file(tensors, recipe.with_name(_CHECKPOINT))
        exporting(recipe)(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]))
