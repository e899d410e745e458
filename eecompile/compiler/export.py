"""``eecompile export``: from a recipe to a bundle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

import eecompile
from eecompile.bundle import (
    BundleManifest,
    ExitGraph,
    exit_graph_name,
    open_bundle,
    records,
    write_manifest,
)
from eecompile.compiler.names import output_name
from eecompile.compiler.partition import extract, per_exit_parts
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.trace import graph_from_network
from eecompile.compiler.verify import Error, Inputs, check_points, compare, verification_points
from eecompile.compiler.weights import WeightStore, load_graph, weight_sizes
from eecompile.errors import BundleError
from eecompile.folders import new_folder
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.load import checkpoint_digest, load_network
from eecompile.recipe import ExportRecipe, Tolerance, load_recipe
from eecompile.runtime.interface import Interface

__all__ = ["bundle_from_recipe"]

Report = Callable[[str], None]


def bundle_from_recipe(
    path: Path, output: Path, *, force: bool = False, report: Report = lambda phase: None
) -> BundleManifest:
    """Export the network that a recipe names.

    Args:
        path: the recipe.
        output: the bundle's folder; an older bundle of the same network is replaced.
        force: replace any bundle or engine set at ``output``.
        report: told the name of each phase as it begins.

    Raises:
        EecompileError: the recipe, the checkpoint, the trace, the verification or the
            output folder is at fault.
    """
    recipe = load_recipe(path)
    interface = interface_from_recipe(recipe)
    with new_folder(output, replaces=force or _holds(output, recipe.name)) as folder:
        report("loading the network")
        network = load_network(recipe.network, path.parent)
        digest = checkpoint_digest(recipe.network, path.parent)
        report("tracing all exits at once")
        model = graph_from_network(network, interface)
        report("writing graphs and weights")
        _write_graphs(folder, model, interface)
        report("verifying every exit against torch")
        errors = _verify(folder, network, interface, recipe.tolerance)
        timesteps, batches = check_points(interface.process.timesteps)
        manifest = BundleManifest(
            interface=interface,
            exits=_exit_graphs(folder, interface, errors),
            files=records(folder),
            versions=_versions(),
            checkpoint_sha256=digest,
            checked_timesteps=timesteps,
            checked_batches=batches,
        )
        return write_manifest(folder, manifest)


def interface_from_recipe(recipe: ExportRecipe) -> Interface:
    """What a sampler must know of a recipe's network."""
    return Interface(
        name=recipe.name,
        exits=recipe.network.exits,
        state=recipe.state,
        conditions=recipe.conditions,
        process=recipe.process,
        schedules=recipe.exit_schedules(),
        sampling=recipe.sampling,
    )


def _holds(output: Path, name: str) -> bool:
    """Whether ``output`` is a bundle of the network ``name``."""
    with suppress(BundleError):
        return open_bundle(output).interface.name == name
    return False


def _write_graphs(folder: Path, model: ir.Model, interface: Interface) -> None:
    outputs = dict(zip(interface.exits, model.graph.outputs, strict=True))
    inputs = [value.name or "" for value in model.graph.inputs]
    store, graphs = WeightStore(), {}
    for part in per_exit_parts(model.graph, outputs):
        # Every exit keeps all inputs, needed or not: one call signature for all of them.
        graph = extract(model, inputs, part.outputs)
        store.add(graph)
        graphs[exit_graph_name(part.exits[0])] = graph
    store.save(folder, graphs)


def _verify(
    folder: Path, network: MultiExitNetwork, interface: Interface, tolerance: Tolerance
) -> dict[int, Error]:
    sessions = {
        depth: session_from_graph(folder / exit_graph_name(depth)) for depth in interface.exits
    }

    def reference(depth: int, point: Inputs) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.asarray(array)) for name, array in point.items()}
        with torch.no_grad():
            predictions = network(**tensors)
        return predictions[interface.exits.index(depth)].numpy()

    def candidate(depth: int, point: Inputs) -> np.ndarray:
        return run_session(sessions[depth], point, [output_name(depth)])[0]

    return compare(
        interface.exits,
        verification_points(interface),
        reference,
        candidate,
        tolerance,
        "ONNX Runtime against torch",
    )


def _exit_graphs(
    folder: Path, interface: Interface, errors: dict[int, Error]
) -> tuple[ExitGraph, ...]:
    graphs = {depth: load_graph(folder, exit_graph_name(depth)) for depth in interface.exits}
    sizes = {depth: weight_sizes(model) for depth, model in graphs.items()}
    found = []
    for depth, model in graphs.items():
        others = set().union(*(sizes[other] for other in graphs if other != depth))
        values = model.graph.initializers.values()
        found.append(
            ExitGraph(
                depth=depth,
                graph=exit_graph_name(depth),
                nodes=len(model.graph),
                parameters=sum(
                    v.const_value.size
                    for v in values
                    if isinstance(v.const_value, ir.ExternalTensor)
                ),
                bytes=sum(sizes[depth].values()),
                unique_bytes=sum(s for place, s in sizes[depth].items() if place not in others),
                worst_error=errors[depth].worst,
                mean_error=errors[depth].mean,
            )
        )
    return tuple(found)


def _versions() -> dict[str, str]:
    packages = ("onnx", "onnx-ir", "onnxscript", "safetensors")
    return {
        "eecompile": eecompile.__version__,
        "torch": str(torch.__version__),
        "onnxruntime": onnxruntime.__version__,
        **{name: version(name) for name in packages},
    }
