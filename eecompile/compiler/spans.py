"""Spans are verified: one that adds exactly what its blocks added changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from eecompile.arrays import AnyArray, Array, Inputs
from eecompile.compiler.graph.emulation import widen_bfloat16
from eecompile.compiler.graph.partition import extract
from eecompile.compiler.progress import Report
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.compiler.verify import random_inputs
from eecompile.errors import VerificationError
from eecompile.programs.choice import Choice, Exit, Span
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.runtime.protocol import Engine
from eecompile.runtime.trajectory.plan import NONE, WHOLE, BoundEvaluation, Plan, Rows, Stretch
from eecompile.store.manifest import Segment, SpanPlan, output_names
from eecompile.store.target import Target


def verified_spans(
    engine: Engine,
    interface: Interface,
    spans: Sequence[SpanPlan],
    target: Target,
    batch: int,
    report: Report,
) -> tuple[SpanPlan, ...]:
    """The spans with their errors: of the deepest exit, at the middle of time.

    A trajectory evaluates the exit there and at another time, and then there again with the span
    skipped. What is extrapolated to a time at which the blocks ran is what they added there; what
    was left behind is of the other time.

    Raises:
        VerificationError: an output differs by more than the target's tolerance.
    """
    if not spans:
        return ()
    report(f"verifying: the spans of {target.name}", 0, len(spans))
    outputs = _outputs(engine, interface, spans, batch)
    right, found = next(outputs), []
    for index, (span, output) in enumerate(zip(spans, outputs, strict=True)):
        worst, relative = _error(span, output, right, target)
        found.append(msgspec.structs.replace(span, worst_error=worst, relative_error=relative))
        report(f"verifying: the spans of {target.name}", index + 1, len(spans))
    return tuple(found)


def _outputs(
    engine: Engine, interface: Interface, spans: Sequence[SpanPlan], batch: int
) -> Iterator[Array]:
    """The prediction of the exit at the middle of time, then of each span, on the same input."""
    depth, process = interface.exits[-1], interface.process
    time, other = process.timesteps / 2, process.timesteps / 4
    state, kept, output = ((Term(name, 1.0),) for name in ("state", "input", "output"))

    def step(choice: Choice, time: float, *updates: Update) -> Step:
        return Step(choice, process.at(time).timestep, kept, updates)

    first = Step(
        Exit(depth),
        process.at(time).timestep,
        state,
        (Update("input", state), Update("state", output)),
    )
    steps = [first]
    for span in spans:
        steps.append(step(Exit(depth), other, Update("unused", output)))
        skipping = Span(span.start, span.stop, 1, depth)
        steps.append(step(skipping, time, Update("state", output)))
    plan = Plan(
        program=Program(solver="verification", initial=1.0, steps=tuple(steps)),
        interface=interface,
        shape=interface.state.shape,
        size=batch,
    )
    inputs = random_inputs(interface, batch, time, seed=0)
    rows = Rows(
        seeds=np.zeros(batch, np.uint64),
        samples=np.arange(batch, dtype=np.uint64),
        scales=np.empty(0, np.float32),
        conditions={name: inputs[name] for name in interface.conditions},
    )
    with engine.trajectory(plan) as trajectory:
        trajectory.start(rows)
        for index in range(len(steps)):
            trajectory.step(index)
            if index % 2 == 0:
                yield trajectory.state()


def _error(span: SpanPlan, found: Array, right: Array, target: Target) -> tuple[float, float]:
    worst, size = float(np.abs(found - right).max()), float(np.abs(right).max())
    bound = target.tolerance.absolute + target.tolerance.relative * size
    if not worst <= bound:
        raise VerificationError(
            found=f"a difference of {worst:.3g} where blocks {span.start + 1} to {span.stop} are "
            f"skipped and add exactly what they did (batch {len(right)}, {target.name})",
            expected=f"at most {bound:.3g}",
            remedy="choose other network.cuts in the recipe, or widen the target's tolerance",
        )
    return worst, worst / size if size else 0.0


class GraphEngine(Engine):
    """Evaluates segments' graphs in ONNX Runtime, for engines that cannot be run here.

    Args:
        model: all exits, in the precision of the target.
        segments: of the model.
        interface: what the network takes and gives.
        spans: of the model.
        target: for bf16, ONNX Runtime computes in float32.
        work: for the graphs.
    """

    max_batch = 1 << 30

    def __init__(
        self,
        model: ir.Model,
        segments: Sequence[Segment],
        interface: Interface,
        spans: Sequence[SpanPlan],
        target: Target,
        work: Path,
    ) -> None:
        self.interface, self.exits, self.precision = interface, interface.exits, target.precision
        self._segments, self._sessions = segments, []
        for segment in segments:
            path = work / f"{Path(segment.file).stem}.graph.onnx"
            graph = extract(model, segment.inputs, segment.outputs)
            ir.save(graph, path, external_data=f"{path.stem}.data")
            if target.precision == "bf16":
                graph = ir.load(path)
                widen_bfloat16(graph)
                path = path.with_suffix(".wide.onnx")
                ir.save(graph, path, external_data=f"{path.stem}.data")
            self._sessions.append(session_from_graph(path))
        wide = {"bfloat16": "float32"}
        self.spans = {
            (span.start, span.stop): [
                msgspec.structs.replace(tensor, dtype=wide.get(tensor.dtype, tensor.dtype))
                for tensor in span.tensors
            ]
            for span in spans
        }

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        """The outputs at ``depth``; see :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        outputs = [np.empty_like(x) for _ in self.interface.outputs]
        self.bind(x, t, conditions, outputs)(depth)
        return outputs

    def bind(
        self,
        x: Array,
        t: Array,
        conditions: Inputs,
        outputs: Sequence[Array],
        tensors: Mapping[str, Array] = NONE,
    ) -> BoundEvaluation:
        """An evaluation on fixed arrays; see :meth:`eecompile.runtime.protocol.Engine.bind`."""
        values: dict[str, AnyArray] = {"x": x, "t": t, **conditions, **tensors}

        def evaluate(depth: int, stretch: Stretch = WHOLE) -> None:
            results = dict(zip(output_names(self.interface, depth), outputs, strict=True))
            for segment, session in zip(self._segments, self._sessions, strict=True):
                if depth not in segment.exits or not stretch.holds(segment.level):
                    continue
                made = run_session(session, values, segment.outputs)
                for name, value in zip(segment.outputs, made, strict=True):
                    into = results.get(name, tensors.get(name))
                    if into is None:
                        values[name] = value
                    else:
                        into[:] = value

        return evaluate
