"""What pictures of a comparison show."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from eecompile import Interface, State
from eecompile.compare.trajectories import pictures


def test_differences_to_full_depth_stand_below_the_samples() -> None:
    interface = Interface(name="any", exits=(1, 2), state=State(shape=(1, 4, 4), range=(-1.0, 1.0)))
    full = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 1, 4, 4)).astype(np.float32)
    near, far = full.copy(), full.copy()
    near[1] += 0.1
    far[2] += 0.4
    states = {("cpu", "full"): full, ("cpu", "near"): near, ("cpu", "far"): far}
    made = pictures(states | {("left out", "full"): full}, interface, ["cpu"])
    assert list(made) == ["cpu, full", "cpu, near", "cpu, far"]
    opened = {name: Image.open(io.BytesIO(png)).convert("L") for name, png in made.items()}
    assert opened["cpu, near"].height > 1.8 * opened["cpu, full"].height
    for name, places in (("cpu, near", (0, 64, 0)), ("cpu, far", (0, 0, 255))):
        picture = opened[name]
        cells = [picture.width // 6 * (2 * index + 1) for index in range(3)]
        below = [picture.getpixel((x, picture.height - 70)) for x in cells]
        np.testing.assert_allclose(below, places, atol=4)  # one gain for all
