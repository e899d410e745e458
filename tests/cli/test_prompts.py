"""From a prompt to a picture, a video or a sound, on the command line."""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eecompile import Sampler
from eecompile.cli.files import check_samples, write_decoded
from eecompile.errors import BackendError, UsageError
from eecompile.programs.companions import SampleDecoder
from tests.cli.conftest import Run
from tests.compiler.test_companions import LONG, folder

__all__ = ["folder"]
VIDEO = SampleDecoder(kind="video", rate=8.0)
SOUND = SampleDecoder(kind="audio", rate=16000.0)


def test_a_prompt_becomes_a_picture(run: Run, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.png"
    command = ["sample", folder / "cpu", "--prompt", "a cat", "--negative", "snow", "--seed", 1]
    status, out, error = run(*command, "-o", output)
    assert (status, error) == (0, "")
    assert "1 samples: " in out
    with Sampler.open(folder / "cpu") as sampler:
        right = sampler.sample(prompt="a cat", negative="snow", seed=1, decode=True)
    pixels = np.clip((right[0] + 1) / 2 * 255 + 0.5, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), pixels.transpose(1, 2, 0))


def test_arrays_are_decoded_unless_latents_are_wanted(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    command = ["sample", folder / "cpu", "--prompt", "a cat", "--prompt", "a dog", "-n", 3]
    assert run(*command, "-o", tmp_path / "decoded.npy")[0] == 0
    assert run(*command, "--latents", "-o", tmp_path / "latents.npy")[0] == 0
    decoded, latents = (np.load(tmp_path / f"{name}.npy") for name in ("decoded", "latents"))
    assert decoded.shape == (3, 3, 16, 16)
    with Sampler.open(folder / "cpu") as sampler:  # prompts are taken in turn
        right = sampler.sample(prompt=["a cat", "a dog", "a cat"])
        np.testing.assert_allclose(latents, right, atol=1e-5 * np.abs(right).max())
        decoding = sampler.decode(latents)
    np.testing.assert_allclose(decoded, decoding, atol=1e-5 * np.abs(decoding).max())


@pytest.mark.filterwarnings("default")
def test_a_long_prompt_is_told_as_a_warning(run: Run, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.npy"
    status, _, error = run("sample", folder / "cpu", "--prompt", LONG, "-o", output)
    assert status == 0
    assert "warning: a prompt of more than the 12 tokens that encoder 'clip' takes" in error


def test_a_prompt_for_a_network_without_encoder_is_told(
    run: Run, small_sets: dict[str, Path], tmp_path: Path
) -> None:
    command = ["sample", small_sets["per_exit"], "--prompt", "a cat", "-o", tmp_path / "out.png"]
    status, _, error = run(*command)
    assert status == 1
    assert "which has no encoder" in error


def test_tiles_that_a_decoder_does_not_take_are_refused(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    command = ["sample", folder / "cpu", "--prompt", "a cat", "--tile", 4]
    status, _, error = run(*command, "-o", tmp_path / "out.png")
    assert status == 1
    assert "tiles of 4 for the decoder of tiny; expected whole samples" in error


def videos() -> np.ndarray:
    """Two videos of three frames that get brighter, [n, channels, frames, H, W]."""
    levels = np.linspace(-1, 1, 3, dtype=np.float32)
    return np.broadcast_to(levels[:, None, None], (2, 3, 3, 6, 9)).copy()


def test_videos_are_written_as_gif_and_mp4(tmp_path: Path) -> None:
    write_decoded(tmp_path / "out.gif", videos(), VIDEO)
    with Image.open(tmp_path / "out.gif") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
        assert image.info["duration"] == 120  # an eighth of a second, in hundredths
        assert image.size == (18, 6)
        image.seek(2)
        assert np.asarray(image.convert("RGB")).min() > 250
    av = pytest.importorskip("av")
    write_decoded(tmp_path / "out.mp4", videos(), VIDEO)
    with av.open(str(tmp_path / "out.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 8
    assert [frame.shape for frame in frames] == [(6, 18, 3)] * 3
    found = [float(frame.mean()) for frame in frames]
    np.testing.assert_allclose(found, [0, 128, 255], atol=5)  # the codec loses a little


def test_a_waveform_is_written_as_wav(tmp_path: Path) -> None:
    given = np.array([[[0.0, 0.5, -2.0], [1.0, 0.0, -0.5]]], np.float32)
    write_decoded(tmp_path / "out.wav", given, SOUND)
    with wave.open(str(tmp_path / "out.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 16000, 3)
        values = np.frombuffer(file.readframes(3), "<i2").reshape(3, 2).T
    np.testing.assert_array_equal(values, [[0, 16384, -32767], [32767, 0, -16384]])


@pytest.mark.parametrize(
    ("name", "decoder", "count", "found"),
    [
        ("out.gif", None, 1, "samples as they are"),
        ("out.mp4", SampleDecoder(), 1, "decoded image"),
        ("out.png", VIDEO, 1, r"decoded video; expected a name that ends in .gif or .mp4 or .npy"),
        ("out.png", SampleDecoder(kind="text"), 1, "decoded text; expected a name that .* .txt or"),
        ("out.wav", SOUND, 2, "2 samples in .*out.wav; expected one waveform a file"),
    ],
)
def test_names_of_another_kind_are_refused(
    name: str, decoder: SampleDecoder | None, count: int, found: str
) -> None:
    with pytest.raises(UsageError, match=found):
        check_samples(Path(name), decoder, (4, 8, 8), count)


def test_an_mp4_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match=r"eecompile\[video\]"):
        write_decoded(tmp_path / "out.mp4", videos(), VIDEO)
    assert not (tmp_path / "out.mp4").exists()
