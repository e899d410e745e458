"""Runners for polygraphy: one exit in torch, ONNX Runtime, OpenVINO, TensorRT or our engines.

All of them take the same inputs (``x``, ``t`` and the conditions) and give their outputs
the names that the bundle's graphs have, so ``Comparator.run`` and
``Comparator.compare_accuracy`` work with any of them side by side, and with polygraphy's
own runners. ``inference_time`` is measured without polygraphy's checks of the inputs.

:class:`TensorrtRunner` works with the library that polygraphy's switch
``POLYGRAPHY_USE_TENSORRT_RTX`` chose when it was imported: the two libraries need a process
each, and their results are joined through ``RunResults.save`` and ``load``.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from polygraphy import config
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata

from eecompile.bundle import (
    MANIFEST,
    BundleManifest,
    EngineManifest,
    exit_graph_name,
    open_bundle,
    open_engine_set,
    sha256,
)
from eecompile.compiler.names import output_names
from eecompile.errors import BackendError, UsageError
from eecompile.probes import gpus
from eecompile.recipe import load_recipe
from eecompile.runtime.engine import Engine, engine_from_manifest
from eecompile.runtime.interface import Interface
from eecompile.runtime.openvino import import_openvino, model_options
from eecompile.runtime.schedule import ExitSchedule

if TYPE_CHECKING:
    from torch import Tensor

    from eecompile.networks.base import MultiExitNetwork

__all__ = [
    "EngineRunner",
    "ExitRunner",
    "OnnxRuntimeRunner",
    "OpenvinoRunner",
    "TensorrtRunner",
    "TorchRunner",
    "TrainedNetwork",
    "check_belongs",
    "check_recipe",
    "checked_bundle",
    "checked_engine_set",
    "no_gpu",
    "require",
]

Array = NDArray[np.float32]
Feed = Mapping[str, NDArray[np.generic]]
Evaluate = Callable[[Feed], Sequence[Array]]
Folder = str | PathLike[str]
_BATCHES = 4  # batch sizes whose arrays an engine's runner keeps


def checked_bundle(folder: Folder) -> BundleManifest:
    """The manifest of a bundle; its files' digests are checked once a process.

    Raises:
        BundleError: there is no intact bundle.
    """
    path = Path(folder)
    return _bundle(path, _stamp(path))


def checked_engine_set(folder: Folder) -> EngineManifest:
    """The manifest of an engine set; its files' digests are checked once a process.

    Raises:
        BundleError: there is no intact engine set.
    """
    path = Path(folder)
    return _engine_set(path, _stamp(path))


def check_belongs(bundle: Folder, engines: Folder) -> EngineManifest:
    """The manifest of an engine set, when it was built from a bundle.

    Raises:
        BundleError: either is no intact folder of its kind.
        UsageError: it was built from another bundle.
    """
    wanted, found = checked_bundle(bundle), checked_engine_set(engines)
    if found.bundle_digest != wanted.digest:
        other = found.interface.name != wanted.interface.name
        raise UsageError(
            found=f"an engine set of {'network' if other else 'another export of'} "
            f"{found.interface.name} at {engines}",
            expected=f"one built from the bundle of {wanted.interface.name} at {bundle}",
            remedy="build that bundle for the target again, or give the bundle it came from",
        )
    return found


class ExitRunner(BaseRunner):  # type: ignore[misc]
    """One exit of a network, for ``Comparator.run``.

    Args:
        interface: what the network takes and gives.
        depth: the exit.
        name: of the runner; by default the kind of runner and the exit.

    Attributes:
        outputs: names of the outputs, as in the bundle's graphs.

    Raises:
        ScheduleError: the network has no such exit.
    """

    kind = "runner"
    is_active = False  # polygraphy asks when a runner goes, even one that was never made

    def __init__(self, interface: Interface, depth: int, name: str | None = None) -> None:
        ExitSchedule.constant(depth).check(interface.exits)
        super().__init__(name=name or f"{self.kind}, exit {depth}")
        self.interface = interface
        self.depth = depth
        self.outputs = output_names(interface, depth)
        self._stack: ExitStack | None = None
        self._evaluate: Evaluate | None = None

    @contextmanager
    @abstractmethod
    def opened(self) -> Iterator[Evaluate]:
        """A function from the inputs to the outputs, float32, as long as the block lasts."""
        raise NotImplementedError
        yield

    def activate_impl(self) -> None:
        """Load what evaluates."""
        with ExitStack() as stack:
            self._evaluate = stack.enter_context(self.opened())
            self._stack = stack.pop_all()

    def get_input_metadata_impl(self) -> Any:
        """Names, dtypes and shapes of the inputs; None is an axis that may vary."""
        state, metadata = self.interface.state, TensorMetadata()
        free = state.resizable.axes if state.resizable else ()
        shape = [None if axis in free else length for axis, length in enumerate(state.shape)]
        metadata.add("x", np.dtype(np.float32), (None, *shape))
        metadata.add("t", np.dtype(np.float32), (None,))
        for name, spec in self.interface.conditions.items():
            metadata.add(name, np.dtype(spec.dtype), (None, *spec.shape))
        return metadata

    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, Array]:
        """The outputs by name; a runner may use their memory again."""
        assert self._evaluate is not None
        started = time.perf_counter()
        arrays = self._evaluate(feed_dict)
        self.inference_time = time.perf_counter() - started
        return OrderedDict(zip(self.outputs, arrays, strict=True))

    def deactivate_impl(self) -> None:
        """Release what evaluates."""
        stack, self._stack, self._evaluate = self._stack, None, None
        if stack is not None:
            stack.close()


class OnnxRuntimeRunner(ExitRunner):
    """The bundle's graph of one exit in an ONNX Runtime session of its own, FP32 on the CPU.

    Args:
        bundle: what ``eecompile export`` wrote.
        depth: the exit.
        threads: of one evaluation; 0 for the physical cores.
        name: of the runner.

    Raises:
        BundleError: there is no intact bundle.
        ScheduleError: the network has no such exit.
    """

    kind = "onnxruntime"

    def __init__(
        self, bundle: Folder, depth: int, *, threads: int = 0, name: str | None = None
    ) -> None:
        super().__init__(checked_bundle(bundle).interface, depth, name)
        self._path, self._threads = Path(bundle) / exit_graph_name(depth), threads

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: onnxruntime is missing.
        """
        require("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 4  # what fails is raised, not printed
        # Threads that spin on after a run would slow whatever is measured next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(
            str(self._path), options, providers=["CPUExecutionProvider"]
        )
        yield lambda feed: session.run(list(self.outputs), dict(feed))


class OpenvinoRunner(ExitRunner):
    """The bundle's graph of one exit in OpenVINO, FP32 on the CPU; see OnnxRuntimeRunner."""

    kind = "openvino"

    def __init__(
        self, bundle: Folder, depth: int, *, threads: int = 0, name: str | None = None
    ) -> None:
        super().__init__(checked_bundle(bundle).interface, depth, name)
        self._path, self._threads = Path(bundle) / exit_graph_name(depth), threads

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: openvino is missing.
        """
        openvino = import_openvino()
        model = openvino.Core().compile_model(
            str(self._path), "CPU", model_options("fp32", self._threads)
        )
        request = model.create_infer_request()

        def evaluate(feed: Feed) -> Sequence[Array]:
            results = request.infer(dict(feed))
            return [results[name] for name in self.outputs]

        yield evaluate


class EngineRunner(ExitRunner):
    """One exit of an engine set, through eecompile's runtime.

    Args:
        engines: what ``eecompile build`` wrote.
        depth: the exit.
        threads: of one evaluation, 0 for the physical cores; None takes the target's.
        engine: the engine set's, already open, which stays open; so that several exits
            share one.
        name: of the runner.

    Raises:
        BundleError: there is no intact engine set.
        ScheduleError: the network has no such exit.
    """

    kind = "eecompile"

    def __init__(
        self,
        engines: Folder,
        depth: int,
        *,
        threads: int | None = None,
        engine: Engine | None = None,
        name: str | None = None,
    ) -> None:
        manifest = checked_engine_set(engines)
        super().__init__(manifest.interface, depth, name)
        self._folder, self._manifest = Path(engines), manifest
        self._threads, self._engine = threads, engine

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: the backend is missing, or refuses an engine.
        """
        with ExitStack() as stack:
            engine = self._engine or stack.enter_context(
                engine_from_manifest(self._folder, self._manifest, self._threads)
            )
            bindable = hasattr(engine, "bind")
            count = len(self.outputs)
            yield _Bound(engine, self.depth, count) if bindable else self._plain(engine)

    def _plain(self, engine: Engine) -> Evaluate:
        def evaluate(feed: Feed) -> Sequence[Array]:
            given = {name: np.ascontiguousarray(array) for name, array in feed.items()}
            x, t = given.pop("x").astype(np.float32), given.pop("t").astype(np.float32)
            return engine.evaluate(self.depth, x, t, given)

        return evaluate


class _Bound:
    """Evaluations on arrays that stay, one set a batch size, as a sampler's are."""

    def __init__(self, engine: Any, depth: int, outputs: int) -> None:
        self._engine, self._depth, self._outputs = engine, depth, outputs
        self._kept: OrderedDict[object, tuple[Feed, list[Array], Callable[[int], None]]]
        self._kept = OrderedDict()

    def __call__(self, feed: Feed) -> Sequence[Array]:
        key = tuple((name, array.shape) for name, array in feed.items())
        if key not in self._kept:
            self._kept[key] = self._made(feed)
            while len(self._kept) > _BATCHES:
                self._kept.popitem(last=False)
        inputs, outputs, evaluate = self._kept[key]
        for name, array in feed.items():
            inputs[name][...] = array
        evaluate(self._depth)
        return outputs

    def _made(self, feed: Feed) -> tuple[Feed, list[Array], Callable[[int], None]]:
        inputs = {name: np.array(array, order="C") for name, array in feed.items()}
        outputs = [np.empty(inputs["x"].shape, np.float32) for _ in range(self._outputs)]
        rest = {name: array for name, array in inputs.items() if name not in ("x", "t")}
        return inputs, outputs, self._engine.bind(inputs["x"], inputs["t"], rest, outputs)


class TrainedNetwork:
    """The torch network that a bundle was exported from, with its checkpoint.

    Args:
        bundle: what ``eecompile export`` wrote.
        recipe: the export recipe that it was exported with.

    Raises:
        BundleError: there is no intact bundle.
        BackendError: torch is missing.
        RecipeError: the recipe is malformed, or its factory cannot make the network.
        UsageError: the recipe's network or checkpoint is not the bundle's.
    """

    def __init__(self, bundle: Folder, recipe: Folder) -> None:
        manifest, path = checked_bundle(bundle), Path(recipe)
        self.interface = manifest.interface
        self.checkpoint = check_recipe(manifest, path)
        require("torch", "eecompile[export]")
        from eecompile.networks.load import load_network

        # The bundle may have been exported with other exits than the recipe's.
        read = load_recipe(path, exits=self.interface.exits)
        self.network = load_network(read.network, path.parent)
        self._compiled: dict[int, Callable[..., Tensor]] = {}

    def evaluate(self, depth: int, feed: Feed, *, compiled: bool = False) -> Sequence[Array]:
        """The outputs of one exit; deeper blocks do not run where the network allows that."""
        import torch

        predict = self._compiled_at(depth) if compiled else predict_at(self.network, depth)
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in feed.items()}
        with torch.inference_mode():
            whole = predict(**tensors)
            parts = whole.chunk(len(self.interface.outputs), dim=1)
        return [part.numpy() for part in parts]

    def _compiled_at(self, depth: int) -> Callable[..., Tensor]:
        import torch

        if depth not in self._compiled:
            predict = predict_at(self.network, depth)
            self._compiled[depth] = torch.compile(_own_code(predict, f"exit_{depth}"))
        return self._compiled[depth]


class TorchRunner(ExitRunner):
    """One exit of the trained torch network.

    Args:
        network: the trained network, which several runners may share.
        depth: the exit.
        compiled: through ``torch.compile``.
        name: of the runner.

    Raises:
        ScheduleError: the network has no such exit.
    """

    kind = "torch"

    def __init__(
        self,
        network: TrainedNetwork,
        depth: int,
        *,
        compiled: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(network.interface, depth, name)
        self._network, self._compiled = network, compiled

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`."""
        network, depth, compiled = self._network, self.depth, self._compiled
        yield lambda feed: network.evaluate(depth, feed, compiled=compiled)


class TensorrtRunner(ExitRunner):
    """One exit's plans of an engine set, each through polygraphy's own ``TrtRunner``.

    Args:
        engines: an engine set for TensorRT or TensorRT-RTX.
        depth: the exit.
        name: of the runner.

    Raises:
        BundleError: there is no intact engine set.
        BackendError: it has no plans, or polygraphy's switch names the other library.
        ScheduleError: the network has no such exit.
    """

    kind = "polygraphy"

    def __init__(self, engines: Folder, depth: int, *, name: str | None = None) -> None:
        manifest = checked_engine_set(engines)
        super().__init__(manifest.interface, depth, name)
        self._folder, self._manifest = Path(engines), manifest
        backend = manifest.target.backend
        library = "tensorrt-rtx" if config.USE_TENSORRT_RTX else "tensorrt"
        if backend != library:
            switch = "1" if backend == "tensorrt-rtx" else "0"
            plans = backend.startswith("tensorrt")
            raise BackendError(
                found=f"an engine set for {backend}, and polygraphy set up for {library}",
                expected=f"engines for {library} in this process",
                remedy=f"start Python with POLYGRAPHY_USE_TENSORRT_RTX={switch}"
                if plans
                else "use EngineRunner",
            )

    @contextmanager
    def opened(self) -> Iterator[Evaluate]:
        """See :class:`ExitRunner`.

        Raises:
            BackendError: there is no GPU.
        """
        if not gpus():
            raise no_gpu(self._manifest.target.backend)
        from polygraphy.backend.common import BytesFromPath
        from polygraphy.backend.trt import EngineFromBytes, TrtRunner

        plan = next(plan for plan in self._manifest.exits if plan.depth == self.depth)
        segments = [self._manifest.segments[index] for index in plan.segments]
        with ExitStack() as stack:
            runners = [
                stack.enter_context(
                    # Plans for TensorRT-RTX take all their memory from the caller.
                    TrtRunner(
                        EngineFromBytes(BytesFromPath(str(self._folder / segment.file))),
                        allocation_strategy="profile",
                    )
                )
                for segment in segments
            ]

            def evaluate(feed: Feed) -> Sequence[Array]:
                values = dict(feed)
                for segment, runner in zip(segments, runners, strict=True):
                    given = {name: values[name] for name in segment.inputs}
                    values |= runner.infer(given, check_inputs=False)
                return [np.asarray(values[name], np.float32) for name in plan.outputs]

            yield evaluate


def no_gpu(backend: str) -> BackendError:
    """What is raised where a backend would need a GPU."""
    return BackendError(
        found="no NVIDIA GPU",
        expected=f"one, for {backend}",
        remedy="compare on a machine with a GPU and its driver, or leave that backend out",
    )


def require(package: str, extra: str | None = None) -> None:
    """Pass when a package is installed.

    Raises:
        BackendError: it is not.
    """
    if find_spec(package) is None:
        name = extra or {"onnxruntime": "eecompile[cpu]"}.get(package, f"eecompile[{package}]")
        raise BackendError(
            found=f"no package {package}",
            expected="it, for this comparison",
            remedy=f"pip install '{name}'",
        )


def check_recipe(manifest: BundleManifest, path: Path) -> Path:
    """The checkpoint of a recipe, when a bundle was exported from it.

    Raises:
        RecipeError: the recipe is malformed.
        UsageError: its network or its checkpoint is not the bundle's.
    """
    recipe = load_recipe(path)
    if recipe.name != manifest.interface.name or recipe.network.files:
        what = "ONNX files" if recipe.network.files else f"the network {recipe.name}"
        raise UsageError(
            found=f"a recipe of {what} at {path}",
            expected=f"that of the torch network {manifest.interface.name}, the bundle's",
            remedy="give the recipe that the bundle was exported with, or leave it out",
        )
    checkpoint = path.parent / (recipe.network.checkpoint or "")
    digest = sha256(checkpoint) if checkpoint.is_file() else "none"
    if digest not in manifest.sources.values():
        known = ", ".join(f"{name} ({each[:12]}...)" for name, each in manifest.sources.items())
        raise UsageError(
            found=f"checkpoint {checkpoint.name} (SHA-256 {digest[:12]}...) of {path}",
            expected=f"the bundle's: {known}",
            remedy="give the recipe that the bundle was exported with, or export again",
        )
    return checkpoint


def predict_at(network: MultiExitNetwork, depth: int) -> Callable[..., Tensor]:
    """A function that predicts from one exit, as cheaply as the network allows."""
    from eecompile.networks.truncated import Renamed, Truncated, named

    if hasattr(network, "predict_at"):
        direct = network.predict_at
        return lambda **inputs: direct(depth, **inputs)
    if isinstance(network, Truncated):
        return lambda **inputs: _cut(network, depth, inputs)
    if isinstance(network, Renamed):
        inner = predict_at(network.network, depth)
        return lambda **inputs: inner(**named(network.arguments, inputs))
    index = network.exits.index(depth)
    return lambda **inputs: network(**inputs)[index]


def _cut(network: Any, depth: int, inputs: Mapping[str, Tensor]) -> Tensor:
    """One exit of a network that is cut at a list of blocks: blocks beyond it do nothing."""
    exits = network.exits
    network.exits = (depth,)
    try:
        (prediction,) = network(**inputs)
    finally:
        network.exits = exits
    made: Tensor = prediction
    return made


def _own_code(function: Any, name: str) -> Any:
    """The same function with code of its own: torch.compile counts compilations by code."""
    code = function.__code__.replace(co_name=name)
    return FunctionType(code, function.__globals__, name, None, function.__closure__)


def _stamp(folder: Path) -> int:
    try:
        return (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=16)
def _bundle(folder: Path, stamp: int) -> BundleManifest:
    return open_bundle(folder)


@lru_cache(maxsize=16)
def _engine_set(folder: Path, stamp: int) -> EngineManifest:
    return open_engine_set(folder)
