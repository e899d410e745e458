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

    text = re.sub(r"\[schedules\].*?\n(?=\[)", "", RECIPE.read_text(), flags=re.DOTALL)
    (shipped,) = re.findall('checkpoint = "(.*)"', text)
    for old, new in (
        ("depth = 12", f"depth = {_DEPTH}"),
        ("exits = [3, 6, 9, 12]", f"exits = [3, {_DEPTH}]"),
        (shipped, _CHECKPOINT),
        ('schedule = "half"', 'schedule = "full"'),
    ):
        text = text.replace(old, new)
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
