"""What a manifest must say beyond its types: checked once, where it is read.

Digests tell of damage; whoever writes a manifest anew can give it any digest. What passes here
can be sampled without a surprise: the engines of an exit make what the next ones read, and its own
outputs at the end. The parts of manifests are those of :mod:`eecompile.store.bundle`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from eecompile.backends import backend_from_target
from eecompile.programs.interface import Interface
from eecompile.programs.meaning import DEEPEST, LARGEST
from eecompile.store.target import Target

_NEVER = 1 << 62  # a level above all


class _Segment(Protocol):
    @property
    def file(self) -> str: ...
    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def exits(self) -> Sequence[int]: ...
    @property
    def level(self) -> int: ...


class _Plan(Protocol):
    @property
    def depth(self) -> int: ...
    @property
    def segments(self) -> tuple[int, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


class _Tensor(Protocol):
    @property
    def leaves(self) -> str: ...
    @property
    def enters(self) -> str | None: ...
    @property
    def shape(self) -> Sequence[int]: ...


class _Span(Protocol):
    @property
    def start(self) -> int: ...
    @property
    def stop(self) -> int: ...
    @property
    def tensors(self) -> Sequence[_Tensor]: ...


def segment_problems(
    interface: Interface, target: Target, segments: Sequence[_Segment]
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


def plan_problems(
    interface: Interface, segments: Sequence[_Segment], plan: _Plan, outputs: tuple[str, ...]
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


def cut_problems(interface: Interface, span: _Span) -> Iterator[str]:
    """What cannot be of a span's ends."""
    if (span.start, span.stop) not in interface.spans:
        yield f"span {span.start}-{span.stop} at the cuts {list(interface.cuts)}"


def span_problems(interface: Interface, segments: Sequence[_Segment], span: _Span) -> Iterator[str]:
    """What cannot be of a span: it is at cuts, and all tensors that leave it do."""
    if problems := list(cut_problems(interface, span)):
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
