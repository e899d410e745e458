"""What docs/how-to shows is true: its files are written, and its commands run, as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

import eecompile
from eecompile.compiler.export import bundle_from_recipe
from eecompile.errors import TraceError, VerificationError
from eecompile.store.bundle import open_bundle
from tests.conftest import ROOT, Shared

HOW_TO = ROOT / "docs" / "how-to"
DOCUMENT = HOW_TO / "own-network.md"
CYCLES = np.array([2, 5, 9])  # of each regime, in a window of 64
PRINTED = "printed.json"
SLOWEST = 300  # seconds that no command should need, even on a busy machine


def blocks(*languages: str, document: Path = DOCUMENT) -> list[str]:
    """The document's blocks in any of these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def run(line: str, folder: Path) -> str:
    """Run a command as a reader would, with this environment's programs; what it printed."""
    name, *rest = shlex.split(line)
    programs = str(Path(sys.executable).parent)
    program = shutil.which(name, path=programs)
    assert program, f"{name} is not installed beside {sys.executable}"
    environment = {**os.environ, "PATH": programs + os.pathsep + os.environ["PATH"]}
    done = subprocess.run(
        [program, *rest],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SLOWEST,
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def folder(shared: Shared) -> Path:
    """The document's files, after all of its commands; not to be written to."""
    return shared("own-network", carry_out)


@pytest.fixture
def printed(folder: Path) -> dict[str, str]:
    """What each command printed."""
    return json.loads((folder / PRINTED).read_text())


def carry_out(place: Path, document: Path = DOCUMENT) -> None:
    """Write the document's files, run its commands, and keep what they print."""
    place.mkdir()
    for text in blocks("python", "toml", document=document):
        name = re.match(r"# (\w+\.(?:py|toml))\n", text)
        assert name, f"a block that names no file, so that nothing tests it:\n{text}"
        assert not (place / name[1]).exists(), f"{name[1]} is there twice"
        (place / name[1]).write_text(text)
    printed = {}
    for text in blocks("console", document=document):
        for line in text.splitlines():
            if line.startswith("$ "):
                printed[line[2:]] = run(line[2:], place)
    (place / PRINTED).write_text(json.dumps(printed))


def waves_in(samples: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many waves each channel of each sample holds: its strongest frequency, [n, 2]."""
    spectrum = np.abs(np.fft.rfft(samples))
    return spectrum[:, :, 1:].argmax(axis=-1) + 1


def accuracy(samples: NDArray[np.float32]) -> float:
    """Share of the samples that have their regime's frequency; regimes count 0, 1, 2, 0, ..."""
    wanted = CYCLES[np.arange(len(samples)) % 3]
    return float((waves_in(samples) == wanted[:, None]).mean())


@pytest.mark.slow
def test_the_samples_are_the_waves_of_their_regime(folder: Path) -> None:
    samples = np.load(folder / "series.npy")
    assert samples.shape == (8, 2, 64)
    assert samples.dtype == np.float32
    assert np.isfinite(samples).all()
    assert (waves_in(samples) == CYCLES[1]).mean() > 0.8
    assert 0.5 < samples.std() < 0.8  # the data's is 0.65
    # A saw rises slowly and falls at once, and a sine does neither: the channels differ.
    steepness = -np.diff(samples).min(axis=-1).mean(axis=0)
    assert steepness[1] > 1.3 * steepness[0]


@pytest.mark.slow
def test_python_samples_what_the_command_samples(folder: Path, printed: dict[str, str]) -> None:
    with np.load(folder / "sample.npz") as found:
        np.testing.assert_array_equal(found["waves"], np.load(folder / "series.npy"))
        assert accuracy(found["each"]) > 0.5
        assert found["long"].shape == (3, 2, 128)
        # Twice as long, twice the waves; windows of this length were never trained on.
        assert (np.abs(waves_in(found["long"]) - 2 * CYCLES[:, None]) <= 2).mean() > 0.5
    assert len(printed["python sample.py"].splitlines()) == 20


@pytest.mark.slow
def test_the_schedule_is_nearly_as_good_as_full_depth_and_the_shallow_exit_is_not(
    folder: Path,
) -> None:
    with eecompile.Sampler.open(folder / "out" / "series" / "cpu") as sampler:
        assert sampler.interface.share(sampler.schedule()) == pytest.approx(0.73, abs=0.005)
        found = {name: sampler.sample(48, schedule=name) for name in ("full", "descending", 2)}
    assert accuracy(found["full"]) > 0.85
    assert accuracy(found["descending"]) > 0.85
    assert accuracy(found[2]) < 0.6


@pytest.mark.slow
def test_a_module_written_for_one_depth_deploys_the_same_exits(folder: Path) -> None:
    manifest = open_bundle(folder / "out" / "plain" / "bundle")
    assert [exit_.depth for exit_ in manifest.exits] == [2, 4, 6]
    assert all(0 < exit_.worst_error < 1e-4 for exit_ in manifest.exits)
    assert manifest.reference == "torch"
    sizes = [exit_.parameters for exit_ in manifest.exits]
    assert sizes == sorted(set(sizes))
    multi = eecompile.Sampler.open(folder / "out" / "series" / "cpu")
    plain = eecompile.Sampler.open(folder / "out" / "plain" / "cpu")
    with multi, plain:
        for schedule in (2, 4, [6, 6, 4, 4, 2]):
            same: dict[str, Any] = {"schedule": schedule, "steps": 10, "regime": 2}
            expected = multi.sample(4, **same)
            np.testing.assert_allclose(plain.sample(4, **same), expected, atol=1e-4)


@pytest.mark.slow
def test_unrelated_onnx_files_are_switched_by_the_schedule(
    folder: Path, printed: dict[str, str]
) -> None:
    samples = np.load(folder / "two.npy")
    assert samples.shape == (8, 2, 64)
    assert np.isfinite(samples).all()
    assert (waves_in(samples) == CYCLES[1]).mean() > 0.8
    assert "64%" in printed["eecompile inspect out/two/cpu"]  # (3 * 9 + 2 * 1) / (5 * 9)
    with (
        eecompile.Sampler.open(folder / "out" / "two" / "cpu") as two,
        eecompile.Sampler.open(folder / "out" / "series" / "cpu") as series,
    ):
        depths = [step.choice.blocks for step in two.steps(1, steps=10)]
        assert depths == [1] * 4 + [2] * 6
        large = two.sample(4, schedule=2, steps=10, regime=0)
        deepest = series.sample(4, schedule=6, steps=10, regime=0)
        np.testing.assert_allclose(large, deepest, atol=1e-4)
        assert np.abs(large - two.sample(4, schedule=1, steps=10, regime=0)).max() > 0.1


class Sound(nn.Module):
    """A network with two exits that nothing is wrong with."""

    def __init__(self, exits: tuple[int, ...]) -> None:
        super().__init__()
        self.exits = exits
        self.first, self.second = (nn.Conv1d(2, 2, 3, padding=1) for _ in exits)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        h = self.first(x) + t[:, None, None] / 1000
        return h, self.second(h)


class Branching(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x if t[0] < 500 else 2 * x, t)


class Random(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x + torch.randn_like(x), t)


class Apart(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x, t)[0], self.second(x)


class Fixed(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x.reshape(2, 2, 64), t)


class Indexed(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x + torch.linspace(0, 1, 1001)[t][:, None, None], t)


class Together(Sound):
    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        return super().forward(x - x.mean(0), t)


# In the order of the table.
REFUSED: list[type[Sound]] = [
    Branching, Random, Apart, Fixed, Indexed, Together,
]  # fmt: skip


def refusals() -> list[str]:
    """What export says, by the document's table."""
    table = DOCUMENT.read_text().partition("## What is refused")[2]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    return [cells[3].strip().strip("`") for cells in rows[2:]]


def export(network: type[Sound], folder: Path) -> Path:
    """Export a network of this module; the bundle."""
    save_file(network((1, 2)).state_dict(), folder / "weights.safetensors")
    (folder / "recipe.toml").write_text(f"""
        name = "refused"
        state.shape = [2, 64]
        [network]
        factory = "{__name__}:{network.__name__}"
        checkpoint = "weights.safetensors"
        exits = [1, 2]
    """)
    bundle_from_recipe(folder / "recipe.toml", folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("row", range(len(REFUSED)), ids=[kind.__name__ for kind in REFUSED])
def test_what_is_refused_says_what_the_table_says(row: int, tmp_path: Path) -> None:
    messages = refusals()
    assert len(messages) == len(REFUSED)
    with pytest.raises((TraceError, VerificationError), match=re.escape(messages[row])):
        export(REFUSED[row], tmp_path)
    assert not (tmp_path / "bundle").exists()


def test_the_same_network_without_the_fault_is_exported(tmp_path: Path) -> None:
    assert open_bundle(export(Sound, tmp_path)).interface.state.shape == (2, 64)


@pytest.mark.parametrize("path", sorted(HOW_TO.glob("*.md")), ids=lambda path: path.name)
def test_links_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if not link.startswith("http"):
            assert (path.parent / link.partition("#")[0]).exists(), link
