"""ONNX Runtime as the compiler's own means: to verify graphs, and to optimise them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import onnxruntime

from eecompile.arrays import Array, Inputs
from eecompile.compiler.verify import Evaluate, Outputs
from eecompile.errors import BackendError
from eecompile.programs.interface import Interface
from eecompile.store.files import in_utf8
from eecompile.store.manifest import exit_graph_name, output_names


def session_from_graph(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU that runs the graph as it is, without optimising it.

    Weights stay in the mapped file: none is rearranged for speed, which would copy it.
    """
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    options.add_session_config_entry("session.disable_prepacking", "1")
    return _session(path, options)


def optimised_session(path: Path) -> onnxruntime.InferenceSession:
    """A session on the CPU that runs the graph fast, for much to be evaluated once."""
    return _session(path, _options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL))


def optimised_graph(path: Path, output: Path) -> None:
    """Write the graph at ``path`` to ``output``, fused but for no processor in particular.

    The level is "extended": the one above it lays tensors out for the processor at hand.
    Weights of the result lie in a file beside it.
    """
    options = _options(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)
    options.optimized_model_filepath = in_utf8(output)
    prefix = "session.optimized_model_external_initializers"
    options.add_session_config_entry(f"{prefix}_file_name", f"{output.stem}.bin")
    options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "256")
    _session(path, options)


def run_session(
    session: onnxruntime.InferenceSession,
    values: Inputs,
    outputs: Sequence[str],
) -> list[Array]:
    """Evaluate ``outputs``; ``values`` may hold more than the session reads.

    Raises:
        BackendError: an operator fails at these values.
    """
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    with _blaming("an evaluation"):
        results: list[Array] = session.run(list(outputs), feeds)
    return results


def evaluate_joined(session: onnxruntime.InferenceSession, interface: Interface) -> Evaluate:
    """Evaluates a graph with the outputs of all exits, named as :func:`output_names` says."""
    names = {depth: output_names(interface, depth) for depth in interface.exits}

    def evaluate(point: Inputs) -> Outputs:
        flat = iter(run_session(session, point, [n for each in names.values() for n in each]))
        return {depth: [next(flat) for _ in each] for depth, each in names.items()}

    return evaluate


def evaluate_apart(folder: Path, interface: Interface) -> Evaluate:
    """Evaluates each exit's graph of a bundle in a session of its own, opened at its first use."""
    opened = cache(lambda depth: session_from_graph(folder / exit_graph_name(depth)))

    def evaluate(point: Inputs) -> Outputs:
        return {
            depth: run_session(opened(depth), point, output_names(interface, depth))
            for depth in interface.exits
        }

    return evaluate


def _session(path: Path, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    name = in_utf8(path)
    with _blaming(path.name):
        return onnxruntime.InferenceSession(name, options, providers=["CPUExecutionProvider"])


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors share no base class
        raise BackendError(
            found=f"{what} refused by ONNX Runtime {onnxruntime.__version__} "
            f"({' '.join(str(error).split())[:300]})",
            expected="a graph that it can run, to verify it",
            remedy="check that operator in the network, or upgrade onnxruntime",
        ) from error


def _options(level: onnxruntime.GraphOptimizationLevel) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4  # what fails is raised, not printed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
