"""Data in every form that an evaluation reads, and what it refuses."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from eecompile.errors import UsageError
from eecompile.evaluate.data import SomeSource, Space, chunks, open_source
from tests.evaluate.pictures import idx

GREY = Space((1, 5, 4), (-1.0, 1.0))
COLOUR = Space((3, 5, 4), (0.0, 1.0))


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def whole(path: Path, space: Space) -> NDArray[np.float32]:
    """All of a source, which is the same read in parts."""
    source = open_source(path, space)
    made = source.read(0, len(source))
    np.testing.assert_array_equal(made, np.concatenate(list(chunks(source, 2))))
    assert made.dtype == np.float32
    return made


def test_pictures_in_every_form_are_the_same(tmp_path: Path) -> None:
    given = pixels(7, 5, 4)
    expected = given[:, None] / 127.5 - 1
    np.save(tmp_path / "bytes.npy", given)
    np.save(tmp_path / "last.npy", given[..., None])
    np.savez(tmp_path / "a.npz", pictures=given)
    np.savez(tmp_path / "b.npz", arr_0=given, arr_1=np.zeros(7))
    np.save(tmp_path / "floats.npy", expected)
    (tmp_path / "pictures-idx3-ubyte").write_bytes(idx(given))
    (tmp_path / "pictures-idx3-ubyte.gz").write_bytes(gzip.compress(idx(given)))
    (tmp_path / "folder" / "class").mkdir(parents=True)
    for index, picture in enumerate(given):
        Image.fromarray(picture).save(tmp_path / "folder" / "class" / f"{index}.png")
    (tmp_path / "folder" / "readme.txt").write_text("not a picture")
    forms = sorted(path for path in tmp_path.iterdir())
    assert len(forms) == 8
    for form in forms:
        np.testing.assert_allclose(whole(form, GREY), expected, atol=1e-6, err_msg=form.name)


def test_colours_keep_their_channels(tmp_path: Path) -> None:
    given = pixels(3, 5, 4, 3)
    np.save(tmp_path / "last.npy", given)
    np.save(tmp_path / "first.npy", given.transpose(0, 3, 1, 2))
    (tmp_path / "folder").mkdir()
    for index, picture in enumerate(given):
        Image.fromarray(picture).save(tmp_path / "folder" / f"{index}.png")
    for form in tmp_path.iterdir():
        expected = given.transpose(0, 3, 1, 2) / 255
        np.testing.assert_allclose(whole(form, COLOUR), expected, atol=1e-6, err_msg=form.name)


def test_samples_that_are_no_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    given = np.random.default_rng(0).normal(scale=30, size=(6, 2, 9))
    np.save(tmp_path / "series.npy", given)
    np.testing.assert_allclose(
        whole(tmp_path / "series.npy", Space((2, 9), None)), given, rtol=1e-6
    )


def test_the_shipped_networks_data_are_read_as_it_was_trained_on_them(tmp_path: Path) -> None:
    path = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
    if not path.exists():
        pytest.skip("dataset-fashion-mnist is not installed")
    source = open_source(path, Space((1, 28, 28), (-1.0, 1.0)))
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=16)
    expected = raw.reshape(-1, 1, 28, 28)[40:50].astype(np.float32) / 127.5 - 1
    assert len(source) == 10_000
    np.testing.assert_array_equal(source.read(40, 50), expected)


def refused(path: Path, space: Space, *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        for _ in chunks(open_source(path, space), 3):
            pass
    for word in words:
        assert word in str(caught.value)


def test_what_cannot_be_read_says_so(tmp_path: Path) -> None:
    refused(tmp_path / "missing.npy", GREY, "missing.npy", "folder of pictures, .npy")
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    refused(tmp_path / "broken.npy", GREY, "cannot be read")
    np.savez(tmp_path / "two.npz", a=pixels(2), b=pixels(3))
    refused(tmp_path / "two.npz", GREY, "['a', 'b']")
    (tmp_path / "labels.gz").write_bytes(gzip.compress(idx(pixels(7))))
    refused(tmp_path / "labels.gz", GREY, "shape [7]", "[N, 1, 5, 4]")
    (tmp_path / "short").write_bytes(idx(pixels(7, 5, 4))[:-9])
    refused(tmp_path / "short", GREY, "131 bytes where [7, 5, 4]")
    (tmp_path / "text").write_text("what is this")
    refused(tmp_path / "text", GREY, "IDX")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    refused(tmp_path / "objects.npy", GREY, "cannot be read")
    np.save(tmp_path / "number.npy", np.float32(1))
    refused(tmp_path / "number.npy", GREY, "holds no array of samples")
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        archive.writestr("text", b"no array")
    refused(tmp_path / "bytes.npz", GREY, "holds no array of samples")
    refused(tmp_path / f"{'a' * 300}.npy", GREY, "cannot be read")


ZEROS = 1 << 26  # bytes of a file that packs to a thousandth of it


def unpacking(path: Path, *words: str) -> None:
    """Refused, without having been unpacked."""
    tracemalloc.start()
    try:
        refused(path, GREY, *words)
        assert tracemalloc.get_traced_memory()[1] < ZEROS // 8
    finally:
        tracemalloc.stop()


def test_a_gzip_file_is_unpacked_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx(pixels(3, 5, 4)) + bytes(ZEROS), 1))
    unpacking(path, "more bytes where [3, 5, 4]")
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 2, 1, 0, 0, 0, 0, 0, 1, 1)) + bytes(ZEROS), 1))
    unpacking(path, "unpacks to 4.0 GiB, more than 4 GiB", ".npy may be of any size")


def test_an_archive_of_arrays_is_unpacked_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, np.zeros((ZEROS // 20, 1, 5, 4), np.uint8))
    monkeypatch.setattr("eecompile.evaluate.data._MOST", ZEROS // 2)
    unpacking(path, "unpacks to 0.1 GiB")


@pytest.mark.parametrize(("side", "words"), [(5_000, "5000x5000"), (20_000, "exceeds limit")])
def test_a_picture_of_another_size_is_not_unpacked(tmp_path: Path, side: int, words: str) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        whole = name + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(ZEROS), 1))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b""))
    unpacking(tmp_path, "huge.png", words)


@pytest.mark.posix
def test_folders_without_fitting_pictures_say_so(tmp_path: Path) -> None:
    refused(tmp_path, GREY, "no pictures", "check the path")
    Image.fromarray(pixels(5, 6)).save(tmp_path / "wide.png")
    refused(tmp_path, GREY, "wide.png of 6x5 pixels", "4x5", "resize")
    (tmp_path / "wide.png").write_text("no picture at all")
    refused(tmp_path, GREY, "wide.png, which is no picture")
    (tmp_path / "wide.png").unlink()
    os.mkfifo(tmp_path / "wide.png")
    refused(tmp_path, GREY, "wide.png, which is no picture", "no plain file")
    refused(tmp_path, Space((4, 5, 4), None), "samples of shape [4, 5, 4]", "--decoder")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((6, 1, 5, 5)), ("shape [6, 1, 5, 5]", "[N, 1, 5, 4]")),
        (np.zeros((0, 1, 5, 4)), ("shape [0, 1, 5, 4]",)),
        (np.zeros((6, 1, 5, 4), complex), ("complex",)),
        (np.full((6, 1, 5, 4), np.nan), ("NaN", "samples 0 to 2")),
        (np.linspace(0, 255, 120).reshape(6, 1, 5, 4), ("-1 to 1, or bytes", "scale")),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, values: NDArray[np.generic], words: tuple[str, ...]
) -> None:
    np.save(tmp_path / "given.npy", values)
    refused(tmp_path / "given.npy", GREY, *words)


def test_bytes_need_a_range(tmp_path: Path) -> None:
    np.save(tmp_path / "given.npy", pixels(6, 4, 5, 4))
    refused(tmp_path / "given.npy", Space((4, 5, 4), None), "bytes", "--decoder")


def test_some_samples_are_spread_over_a_source(tmp_path: Path) -> None:
    given = pixels(7, 5, 4)
    np.save(tmp_path / "all.npy", given)
    source = open_source(tmp_path / "all.npy", GREY)
    some = SomeSource(source, 3)
    assert (len(some), some.name) == (3, f"3 of {source.name}")
    found = np.concatenate(list(chunks(some, 2)))
    np.testing.assert_array_equal(found, source.read(0, 7)[[0, 2, 4]])
