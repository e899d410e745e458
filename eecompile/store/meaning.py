"""What a manifest must say beyond its types: checked once, where it is read.

Digests tell of damage; whoever writes a manifest anew can give it any digest. What passes here
can be sampled without a surprise: the engines of an exit make what the next ones read, and its own
outputs at the end. Manifests are those of :mod:`eecompile.store.manifest`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from eecompile.backends import backend_from_target
from eecompile.programs.interface import Interface
from eecompile.programs.meaning import DEEPEST, LARGEST, interface_problems
from eecompile.store.companions import DECODER, encoder_name
from eecompile.store.manifest import (
    BundleManifest,
    EngineManifest,
    ExitPlan,
    Segment,
    SpanPlan,
    exit_graph_name,
    output_names,
)
from eecompile.store.target import Target

_NEVER = 1 << 62  # a level above all


def bundle_problems(manifest: BundleManifest) -> Iterator[str]:
    """What cannot be in a bundle's manifest."""
    exits = manifest.interface.exits
    yield from interface_problems(manifest.interface)
    found = [(graph.depth, graph.graph) for graph in manifest.exits]
    if found != [(depth, exit_graph_name(depth)) for depth in exits]:
        yield f"graphs {found} for exits {list(exits)}"
    for span in manifest.spans:
        yield from _cut_problems(manifest.interface, span)
    yield from _other_companions(manifest)


def _other_companions(manifest: BundleManifest | EngineManifest) -> Iterator[str]:
    interface = manifest.interface
    wanted = {encoder_name(name) for name in interface.encoders}
    wanted |= {DECODER} if interface.decoder else set()
    if sorted(found := [each.name for each in manifest.companions]) != sorted(wanted):
        yield f"companions {found} for {sorted(wanted)}"


def engine_problems(manifest: EngineManifest) -> Iterator[str]:
    """What cannot be in an engine set's manifest."""
    interface, segments = manifest.interface, manifest.segments
    yield from interface_problems(interface)
    yield from _segment_problems(interface, manifest.target, segments)
    if (found := [plan.depth for plan in manifest.exits]) != list(interface.exits):
        yield f"plans of {found} for exits {list(interface.exits)}"
    for plan in manifest.exits:
        outputs = output_names(interface, plan.depth)
        yield from _plan_problems(interface, segments, plan, outputs)
    if manifest.spans and manifest.target.layout != "chained":
        yield "spans of exits that are one engine each"
    for span in manifest.spans:
        yield from _span_problems(interface, segments, span)
    yield from _other_companions(manifest)


def _segment_problems(
    interface: Interface, target: Target, segments: Sequence[Segment]
) -> Iterator[str]:
    """What cannot be in a target, and of its engines."""
    backend = backend_from_target(target.backend, target.options)
    if target.precision not in backend.precisions or target.layout not in backend.layouts:
        yield f"engines of {target.precision}, {target.layout}, for {backend.name}"
    if target.quantise is not None and target.quantise.kind not in backend.quantised:
        yield f"engines quantised to {target.quantise.kind} for {backend.name}"
    if len({segment.file for segment in segments}) < len(segments):
        yield "two engines in one file"
    levels = {0, *interface.cuts}
    for segment in segments:
        if segment.level not in levels and segment.level <= DEEPEST:
            yield f"{segment.file} at cut {segment.level} of {list(interface.cuts)}"


def _plan_problems(
    interface: Interface, segments: Sequence[Segment], plan: ExitPlan, outputs: tuple[str, ...]
) -> Iterator[str]:
    """What cannot be in an exit's plan; ``outputs`` are the names of what the exit gives."""
    needed = tuple(i for i, segment in enumerate(segments) if plan.depth in segment.exits)
    if plan.segments != needed:
        yield f"exit {plan.depth} of the engines {list(plan.segments)}"
        return
    if plan.outputs != outputs:
        yield f"exit {plan.depth} with the outputs {list(plan.outputs)}"
    made = dict.fromkeys(("x", "t", *interface.conditions), 0)
    for segment in (segments[index] for index in needed):
        for name in segment.inputs:
            if made.get(name, _NEVER) > segment.level:
                yield f"{name!r}, which {segment.file} reads too early"
        for name in segment.outputs:
            if name in made:
                yield f"{name!r}, which {segment.file} makes once more"
            made[name] = segment.level
    if missing := set(outputs) - set(made):
        yield f"exit {plan.depth} without {sorted(missing)}"


def _cut_problems(interface: Interface, span: SpanPlan) -> Iterator[str]:
    """What cannot be of a span's ends."""
    if (span.start, span.stop) not in interface.spans:
        yield f"span {span.start}-{span.stop} at the cuts {list(interface.cuts)}"


def _span_problems(
    interface: Interface, segments: Sequence[Segment], span: SpanPlan
) -> Iterator[str]:
    """What cannot be of a span: it is at cuts, and all tensors that leave it do."""
    if problems := list(_cut_problems(interface, span)):
        yield from problems
        return
    name = f"span {span.start}-{span.stop}"
    level = {output: segment.level for segment in segments for output in segment.outputs}
    skipped = {output for output, at in level.items() if span.start < at <= span.stop}
    after = {
        read
        for segment in segments
        if segment.level > span.stop and (segment.exits or (0,))[-1] >= span.stop
        for read in segment.inputs
    }
    if {tensor.leaves for tensor in span.tensors} != skipped & after:
        yield f"{name} that leaves out a tensor, or has one too many"
    for tensor in span.tensors:
        if tensor.enters is not None and level.get(tensor.enters, _NEVER) > span.start:
            yield f"{name} that {tensor.enters!r} does not enter"
        if math.prod(tensor.shape) > LARGEST or any(length < 1 for length in tensor.shape):
            yield f"{name} with a tensor of shape {list(tensor.shape)}"
