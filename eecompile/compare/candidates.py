"""What is compared: engine sets, the trained network, and what people would use instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from eecompile.backends import BACKENDS, packages
from eecompile.compare.checks import (
    check_belongs,
    check_recipe,
    checked_bundle,
    checked_engine_set,
    no_gpu,
    require,
)
from eecompile.compare.exit_runner import ExitRunner
from eecompile.compare.peers import UNLIMITED, OnnxRuntimePeer, OpenvinoPeer, TensorrtPeer
from eecompile.compare.report import Candidate
from eecompile.compare.trained import TorchPeer, TrainedNetwork
from eecompile.errors import UsageError
from eecompile.measure.machine import gpus
from eecompile.programs.interface import Interface
from eecompile.runtime.opening import open_engine
from eecompile.runtime.protocol import Engine
from eecompile.store.bundle import WEIGHTS
from eecompile.store.manifest import exit_graph_name
from eecompile.store.target import Target, Tolerance
from eecompile.system import work_folder

Source = str  # "engines", "torch", or one of PEERS
DEFAULT = Tolerance()
"""How far the outputs of what has no target may be from the reference's."""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate before it is opened; a child process can be told of it.

    Attributes:
        name: in the report.
        source: what evaluates.
        bundle: the bundle's folder.
        path: the engine set's folder; of torch, the recipe.
    """

    name: str
    source: Source
    bundle: str
    path: str = ""

    @property
    def apart(self) -> bool:
        """Whether polygraphy must run it in a process of its own, by its switch."""
        return self.source in BACKENDS and BACKENDS[self.source].gpu


class Opened(NamedTuple):
    """A candidate that is ready to be measured.

    Attributes:
        name: of the candidate.
        interface: what the network takes and gives.
        engine: the engine set's, or another that loads each exit when it is first evaluated.
    """

    name: str
    interface: Interface
    engine: Engine

    def runner(self, depth: int) -> ExitRunner:
        """One of its exits for polygraphy."""
        return ExitRunner(self.interface, depth, lambda: nullcontext(self.engine), self.name)


def specs(bundle: Path, engines: Sequence[Path], recipe: Path | None) -> list[Spec]:
    """The engine sets, and the trained network where a recipe is given; it comes first.

    Raises:
        UsageError: an engine set was not built from the bundle.
        BundleError: a folder is not intact.
    """
    checked_bundle(bundle)
    found = [Spec(name="torch", source="torch", bundle=str(bundle), path=str(recipe))]
    named = [(check_belongs(bundle, folder).target.name, folder) for folder in engines]
    counts = Counter(name for name, _ in named)
    for name, folder in named:
        shown = f"{name} ({folder.name})" if counts[name] > 1 else name
        found.append(Spec(name=shown, source="engines", bundle=str(bundle), path=str(folder)))
    return found if recipe else found[1:]


def peer(source: Source, bundle: Path, recipe: Path | None) -> Spec:
    """What people would use instead, when it can run here.

    Raises:
        BackendError: a package or a GPU is missing.
        UsageError: it needs the recipe, and there is none.
    """
    if source == "torch.compile":
        require("torch", "export")
        if recipe is None:
            raise UsageError(
                found="torch.compile without the trained network",
                expected="the export recipe that names it",
                remedy="add --torch RECIPE",
            )
    else:
        require(BACKENDS[source].library)
        if BACKENDS[source].gpu and not gpus():
            raise no_gpu(source)
    path = str(recipe) if source == "torch.compile" else ""
    return Spec(name=source, source=source, bundle=str(bundle), path=path)


@contextmanager
def opened(spec: Spec, network: TrainedNetwork | None = None) -> Iterator[Opened]:
    """A candidate, open as long as the block lasts; with the network, where that is loaded.

    Raises:
        EecompileError: a package is missing, or refuses what it is given.
    """
    with ExitStack() as stack:
        if spec.apart:
            spec = msgspec.structs.replace(spec, path=stack.enter_context(plans(spec)))
        engine = stack.enter_context(_engine(spec, network))
        yield Opened(spec.name, checked_bundle(spec.bundle).interface, engine)


def _engine(spec: Spec, network: TrainedNetwork | None) -> Engine:
    match spec.source:
        case "engines":
            return open_engine(Path(spec.path))[0]
        case "onnxruntime":
            return OnnxRuntimePeer(spec.bundle)
        case "openvino":
            return OpenvinoPeer(spec.bundle)
        case "torch" | "torch.compile":
            network = network or TrainedNetwork(spec.bundle, spec.path)
            return TorchPeer(network, compiled=spec.source == "torch.compile")
        case _:
            return TensorrtPeer(spec.path)


@contextmanager
def plans(spec: Spec) -> Iterator[str]:
    """An engine set in FP32 with a plan an exit, for as long as the block lasts."""
    from eecompile.compiler.build import engine_set_from_bundle

    with work_folder() as folder:
        target = Target(name=spec.source, backend=spec.source)
        engine_set_from_bundle(Path(spec.bundle), target, folder / "plans")
        yield str(folder / "plans")


def described(spec: Spec) -> Candidate:
    """What a report says of a candidate before anything was measured."""
    if spec.source == "engines":
        manifest = checked_engine_set(spec.path)
        target = manifest.target
        return Candidate(
            name=spec.name,
            kind="engines",
            backend=target.backend,
            precision=target.numbers,
            layout=target.layout,
            versions=_versions(target.backend),
            bytes=sum(record.bytes for record in manifest.files),
            quantisation=manifest.quantisation,
        )
    return Candidate(
        name=spec.name,
        kind="torch" if spec.source == "torch" else "peer",
        backend=spec.source.removesuffix(".compile"),
        precision="fp32",
        versions=_versions(spec.source),
        bytes=_bytes(spec),
    )


def max_batch(spec: Spec) -> int:
    """The largest batch that a candidate takes."""
    if spec.source == "engines":
        return checked_engine_set(spec.path).target.batch.max
    return UNLIMITED


def tolerance(spec: Spec) -> Tolerance:
    """How far a candidate's outputs may be from the reference's: its target's, if it has one."""
    return checked_engine_set(spec.path).target.tolerance if spec.source == "engines" else DEFAULT


def _bytes(spec: Spec) -> int | None:
    """What lies on the disk: a checkpoint, or the graphs and their weights."""
    manifest = checked_bundle(spec.bundle)
    if spec.source in ("torch", "torch.compile"):
        return check_recipe(manifest, Path(spec.path)).stat().st_size
    if spec.apart:
        return None
    names = {exit_graph_name(depth) for depth in manifest.interface.exits} | {WEIGHTS}
    return sum(record.bytes for record in manifest.files if record.name in names)


def _versions(backend: str) -> dict[str, str]:
    found = {}
    for package in packages(backend) if backend in BACKENDS else ("torch",):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
