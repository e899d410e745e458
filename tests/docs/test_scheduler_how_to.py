"""What docs/how-to/diffusers-scheduler.md shows is true: its files and commands, as they stand."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eecompile import Program, Sampler, ddim
from tests.conftest import Shared
from tests.docs.test_how_to import HOW_TO, PRINTED, run

DOCUMENT = HOW_TO / "diffusers-scheduler.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def folder(engine_sets: dict[str, Path], shared: Shared) -> Path:
    """The document's files, after all of its commands; not to be written to."""
    return shared("scheduler-how-to", partial(carry_out, engine_sets["per_exit"]))


@pytest.fixture
def printed(folder: Path) -> dict[str, str]:
    """What each command printed."""
    return json.loads((folder / PRINTED).read_text())


def carry_out(engines: Path, place: Path) -> None:
    """Write the document's files, run its commands, and keep what they print."""
    shutil.copytree(engines, place / "out" / "fashion-dit" / "cpu")
    for language, text in BLOCK.findall(DOCUMENT.read_text()):
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", text)
            assert name, f"a block that names no file, so that nothing tests it:\n{text}"
            (place / name[1]).write_text(text)
    printed = {}
    for language, text in BLOCK.findall(DOCUMENT.read_text()):
        for line in text.splitlines() if language == "console" else ():
            printed[line.removeprefix("$ ")] = run(line.removeprefix("$ "), place)
    (place / PRINTED).write_text(json.dumps(printed))


def program(folder: Path, name: str) -> Program:
    return Program.from_json((folder / f"{name}.json").read_bytes())


def samples(folder: Path, name: str) -> NDArray[np.float32]:
    found: NDArray[np.float32] = np.load(folder / f"{name}.npy")
    assert np.isfinite(found).all()
    return found


@pytest.mark.slow
def test_the_program_for_the_network_has_choices_and_noise(
    folder: Path, printed: dict[str, str]
) -> None:
    made = program(folder, "sde")
    assert None not in made.choices
    assert sum(step.reads_noise for step in made.steps) > 20
    assert made.process is not None
    shown = printed["eecompile inspect sde.json"]
    for word in ("DPMSolverMultistep", "sde-dpmsolver++", "noise", "state = "):
        assert word in shown
    assert samples(folder, "sde").shape == (10, 1, 28, 28)
    assert 0.3 < np.abs(samples(folder, "sde")).mean() < 1.1  # mostly black and white


@pytest.mark.slow
def test_the_programs_from_python_leave_the_choices_open(folder: Path) -> None:
    assert set(program(folder, "ddim").choices) == {None}
    assert "eta=0.5" in program(folder, "ddim").solver
    assert 0.3 < np.abs(samples(folder, "ddim")).mean() < 1.1


@pytest.mark.slow
def test_eulers_method_in_sigma_is_ddim(folder: Path) -> None:
    """The two are the same function of the same timesteps, but for where DDIM clips."""
    times = [step.timestep for step in program(folder, "euler").steps]
    with Sampler.open(folder / "out" / "fashion-dit" / "cpu") as sampler:
        solver = partial(ddim, grid=times)
        expected = sampler.sample(4, solver=solver, steps=len(times), schedule="fast")
    difference = np.abs(samples(folder, "euler") - expected)
    assert np.median(difference) < 0.02 < np.abs(expected).mean()
