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

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from eecompile.compare.checks import Folder, checked_engine_set
from eecompile.compare.exit_runner import ExitRunner
from eecompile.compare.peers import OnnxRuntimePeer, OpenvinoPeer, Peer, TensorrtPeer
from eecompile.compare.trained import TorchPeer, TrainedNetwork
from eecompile.runtime.opening import engine_from_manifest
from eecompile.runtime.protocol import Engine


class _PeerRunner(ExitRunner):
    """One exit of a peer, which is loaded while the runner is active."""

    def __init__(self, peer: Peer, depth: int, name: str | None) -> None:
        super().__init__(peer.interface, depth, partial(peer.loaded, depth), name)


class TorchRunner(_PeerRunner):
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
        super().__init__(TorchPeer(network, compiled=compiled), depth, name)


class OnnxRuntimeRunner(_PeerRunner):
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

    _peer = OnnxRuntimePeer

    def __init__(
        self, bundle: Folder, depth: int, *, threads: int = 0, name: str | None = None
    ) -> None:
        super().__init__(self._peer(bundle, threads), depth, name)


class OpenvinoRunner(OnnxRuntimeRunner):
    """The bundle's graph of one exit in OpenVINO, FP32 on the CPU; see OnnxRuntimeRunner."""

    kind, _peer = "openvino", OpenvinoPeer


class TensorrtRunner(_PeerRunner):
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
        super().__init__(TensorrtPeer(engines), depth, name)


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
        folder = Path(engines)

        def opened() -> AbstractContextManager[Engine]:
            return (
                nullcontext(engine) if engine else engine_from_manifest(folder, manifest, threads)
            )

        super().__init__(manifest.interface, depth, opened, name)
