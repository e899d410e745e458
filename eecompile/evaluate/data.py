"""Sets of samples to compare: folders of pictures, arrays, and IDX files."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from eecompile.arrays import AnyArray, Array
from eecompile.decoding import from_npy
from eecompile.errors import UsageError, one_line
from eecompile.store.files import file_bytes, is_folder

_ENDINGS = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_IDX_BYTES = 8  # the code of uint8 in an IDX file's header
_PART = 1 << 20  # bytes that are unpacked at a time
_MOST = 4 << 30  # bytes that a compressed file may unpack to: it is held in memory


class Space(NamedTuple):
    """What two sets are compared as.

    Attributes:
        shape: of one sample.
        range: its smallest and largest value; None where it has no bounds.
    """

    shape: tuple[int, ...]
    range: tuple[float, float] | None

    @property
    def is_picture(self) -> bool:
        """Whether samples can be shown: [1 or 3, H, W] between two bounds."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3) and self.range is not None


class Source(Protocol):
    """A set of samples, read in parts."""

    name: str

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, low: int, high: int) -> Array:
        """Samples ``low`` to ``high``, float32 [high - low, *shape]."""
        ...


def chunks(source: Source, size: int, count: int | None = None) -> Iterator[Array]:
    """The first ``count`` samples, or all, at most ``size`` at a time, float32 [size, *shape].

    Raises:
        UsageError: there is NaN or infinity among them.
    """
    count = len(source) if count is None else count
    for low in range(0, count, size):
        part = source.read(low, min(low + size, count))
        if not np.isfinite(part).all():
            raise UsageError(
                found=f"NaN or infinity in {source.name}, samples {low} to {low + len(part) - 1}",
                expected="finite numbers",
                remedy="check where they come from",
            )
        yield part


def open_source(path: Path, space: Space) -> Source:
    """The samples in a folder of pictures, an .npy or .npz file, or an IDX file.

    Bytes become numbers over the range of ``space``; others are taken as they are. A folder is
    searched with its subfolders; an IDX file may be gzipped.

    Raises:
        UsageError: there are none, or they are not of that space.
    """
    if is_folder(path):
        return _FolderSource(path, space)
    return ArraySource(str(path), open_array(path), space)


def open_array(path: Path) -> AnyArray:
    """What an .npy, .npz or IDX file holds; the first is mapped, not read.

    Raises:
        UsageError: the file is missing, or is none of these.
    """
    try:
        if path.suffix == ".npy":
            array = from_npy(path, mapped=True)
        else:
            array = _from_npz(path) if path.suffix == ".npz" else _from_idx(path)
        if not np.ndim(array):
            raise ValueError("it holds no array of samples")
        return array
    except Exception as error:  # numpy, zipfile and gzip raise many kinds
        raise UsageError(
            found=f"{path}, which cannot be read ({error})",
            expected="a folder of pictures, .npy, .npz, or an IDX file of pictures (.gz or not)",
            remedy="check the path, or convert the data: an .npy may be of any size",
        ) from error


class ArraySource:
    """Samples in an array: [N, *shape], of numbers in the space's range or of bytes.

    Pictures may also be [N, H, W] or [N, H, W, C].

    Raises:
        UsageError: they are not.
    """

    def __init__(self, name: str, array: AnyArray, space: Space) -> None:
        self.name, self.space = name, space
        arranged = _arranged(array, space.shape)
        if arranged is None or array.dtype.kind not in "fiu" or not len(array):
            raise UsageError(
                found=f"{name} of {array.dtype}, shape {list(array.shape)}",
                expected=f"numbers of shape [N, {', '.join(map(str, space.shape))}]",
                remedy="give samples of the shape that the network makes",
            )
        self._array, self.bytes = arranged, array.dtype == np.uint8
        if self.bytes and space.range is None:
            raise UsageError(
                found=f"{name} of bytes, and samples without a range",
                expected="float numbers as the network makes them",
                remedy="give these, or pictures with --decoder",
            )

    def __len__(self) -> int:
        return len(self._array)

    def read(self, low: int, high: int) -> Array:
        """See :class:`Source`."""
        part = self._array[low:high]
        if self.bytes and self.space.range:
            return _from_bytes(part, self.space.range)
        made = np.array(part, np.float32, order="C")  # a copy: a mapped file is read-only
        _check_range(self.name, made, self.space.range)
        return made


class SomeSource:
    """Some samples of a source, evenly spread over it: folders are often sorted by kind."""

    def __init__(self, source: Source, count: int) -> None:
        self.name, self._source = f"{count} of {source.name}", source
        self._places = np.arange(count) * len(source) // count

    def __len__(self) -> int:
        return len(self._places)

    def read(self, low: int, high: int) -> Array:
        """See :class:`Source`."""
        places = self._places[low:high].tolist()
        return np.concatenate([self._source.read(at, at + 1) for at in places])


class _FolderSource:
    """The pictures under a folder, by name."""

    def __init__(self, folder: Path, space: Space) -> None:
        self.name, self.space = str(folder), space
        self._files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _ENDINGS)
        if not self._files:
            raise UsageError(
                found=f"no pictures in {folder}",
                expected=f"files that end in {', '.join(sorted(_ENDINGS))}",
                remedy="check the path, or convert them",
            )
        if not space.is_picture:
            raise UsageError(
                found=f"pictures in {folder}, and samples of shape {list(space.shape)}"
                + ("" if space.range else " without a range"),
                expected="samples that are pictures: [1 or 3, H, W] in a range",
                remedy="give the reference as .npy, or a --decoder that makes pictures of samples",
            )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, low: int, high: int) -> Array:
        assert self.space.range
        return _from_bytes(
            np.stack([self._one(p) for p in self._files[low:high]]), self.space.range
        )

    def _one(self, path: Path) -> NDArray[np.uint8]:
        from PIL import Image

        channels, height, width = self.space.shape
        try:
            with Image.open(io.BytesIO(file_bytes(path))) as image:
                if image.size != (width, height):  # before it is unpacked
                    raise _other_size(path, image.size, (width, height))
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
        except UsageError:
            raise
        except Exception as error:  # Pillow's plugins raise many kinds
            raise UsageError(
                found=f"{path}, which is no picture ({one_line(error)})",
                expected="pictures only",
                remedy="remove or fix it",
            ) from error
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _other_size(path: Path, found: tuple[int, int], wanted: tuple[int, int]) -> UsageError:
    return UsageError(
        found=f"{path} of {found[0]}x{found[1]} pixels",
        expected=f"{wanted[0]}x{wanted[1]}, as the samples",
        remedy="resize the pictures as those that the network was trained on",
    )


def _arranged(array: AnyArray, shape: tuple[int, ...]) -> AnyArray | None:
    """As [N, *shape], or None; pictures may come without a channel, or with it last."""
    if array.shape[1:] == shape:
        return array
    if len(shape) == 3 and array.ndim == 4 and array.shape[1:] == (*shape[1:], shape[0]):
        return array.transpose(0, 3, 1, 2)
    if shape[:1] == (1,) and array.shape[1:] == shape[1:]:
        return array[:, None]
    return None


def _from_bytes(pixels: AnyArray, bounds: tuple[float, float]) -> Array:
    low, high = bounds
    scaled = pixels.astype(np.float32) / np.float32(255 / (high - low))
    return np.ascontiguousarray(scaled + np.float32(low))


def _check_range(name: str, part: Array, bounds: tuple[float, float] | None) -> None:
    """Pass unless the numbers are clearly on another scale."""
    if bounds is None or not np.isfinite(part).all():
        return
    span = bounds[1] - bounds[0]
    if part.min() < bounds[0] - span or part.max() > bounds[1] + span:
        raise UsageError(
            found=f"numbers from {part.min():g} to {part.max():g} in {name}",
            expected=f"numbers from {bounds[0]:g} to {bounds[1]:g}, or bytes (uint8)",
            remedy="scale them",
        )


def _from_npz(path: Path) -> AnyArray:
    with np.load(path, allow_pickle=False) as archive:
        names = archive.files
        if len(names) != 1 and "arr_0" not in names:
            raise ValueError(f"it holds the arrays {names}, not one")
        name = "arr_0" if "arr_0" in names else names[0]
        _check_size(max(record.file_size for record in archive.zip.infolist()))
        array: AnyArray = archive[name]
        return array


def _from_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of bytes, as MNIST's pictures are stored."""
    with path.open("rb") as plain:
        packed = plain.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:3] != bytes((0, 0, _IDX_BYTES)):
            raise ValueError("it does not begin as an IDX file of bytes does")
        shape = tuple(np.frombuffer(file.read(4 * head[3]), ">u4", head[3]).tolist())
        _check_size(size := math.prod(shape))
        data = bytearray()  # of no more than the header says, and no more than there is
        while part := file.read(min(size + 1 - len(data), _PART)):
            data += part
    if len(data) != size:
        found = f"{len(data)} bytes" if len(data) < size else "more bytes"
        raise ValueError(f"it holds {found} where {list(shape)} were to be")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _check_size(found: int) -> None:
    if found > _MOST:
        raise ValueError(f"it unpacks to {found / 2**30:.1f} GiB, more than {_MOST >> 30} GiB")
