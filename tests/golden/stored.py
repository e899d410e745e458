"""Golden files: what the package wrote, said and showed when they were stored.

``EECOMPILE_GOLDEN=write pytest tests/golden`` stores what it does now; the difference is then
read with ``git diff``. ``EECOMPILE_GOLDEN=exact`` also refuses numbers that differ in their last
digits, which they may on another processor.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOLDER", "check", "check_arrays", "text_of"]

FOLDER = Path(__file__).parent
_MODES = ("", "write", "exact")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_MODE = os.environ.get("EECOMPILE_GOLDEN", "")
_REMEDY = "If this is meant, store it: EECOMPILE_GOLDEN=write pytest tests/golden"
assert _MODE in _MODES, f"found EECOMPILE_GOLDEN={_MODE}; expected one of {_MODES}"


def check(name: str, text: str, *, numbers: bool = False) -> None:
    """Pass when ``text`` is what the golden file ``name`` holds.

    Args:
        name: of the file, below tests/golden.
        text: to compare.
        numbers: whether its numbers may differ by rounding: by 1e-9 of their size.
    """
    path = FOLDER / name
    stored = path.read_text("utf-8") if path.is_file() else ""
    if text == stored or (numbers and _MODE != "exact" and _alike(text, stored)):
        return
    if _MODE == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return
    lines = difflib.unified_diff(
        stored.splitlines(), text.splitlines(), f"{name}, stored", f"{name}, now", lineterm=""
    )
    difference = "\n".join(lines) or "the ends of lines differ"
    raise AssertionError(f"{difference}\n\n{_REMEDY}")


def check_arrays(
    name: str, arrays: Mapping[str, NDArray[np.float32]], tolerances: Mapping[str, float]
) -> None:
    """Pass when the golden file ``name`` holds these arrays, or nearly.

    Args:
        name: of the file, a .npz below tests/golden.
        arrays: by name, to compare.
        tolerances: of each, the largest root of the mean square of the differences.
    """
    path, stored = FOLDER / name, {}
    if path.is_file():
        with np.load(path) as file:
            stored = dict(file)
    lines = [f"{each}: only stored, or only now" for each in stored.keys() ^ arrays.keys()]
    for each in stored.keys() & arrays.keys():
        apart = float(np.sqrt(np.mean(np.square(stored[each] - arrays[each]))))
        if not apart <= tolerances[each]:  # NaN is not
            lines.append(f"{each}: {apart:.2g} apart; expected {tolerances[each]:g} at most")
    if lines and _MODE == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)
        return
    assert not lines, "\n".join([name, *sorted(lines), "", _REMEDY])


def text_of(name: str) -> str:
    """What the golden file ``name`` holds."""
    return (FOLDER / name).read_text("utf-8")


def _alike(one: str, other: str) -> bool:
    """Whether two texts are the same but for rounding."""
    if _NUMBER.split(one) != _NUMBER.split(other):
        return False
    pairs = zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-12) for a, b in pairs)
