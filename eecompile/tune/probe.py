"""Running programs with an engine that watches: it records, replays, and asks for more.

A prober stands in for an engine in an ordinary sampler, so nothing of the runtime's insides
is needed. What a program shares with one that ran before, from its beginning, is not
evaluated again: the outputs are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.compiler.progress import Report
from eecompile.programs.choice import Choice, Exit
from eecompile.programs.program import Program
from eecompile.runtime.protocol import Engine
from eecompile.runtime.request import SampleRequest
from eecompile.runtime.sampler import Sampler
from eecompile.tune.work import Work

Outputs = list[Array]
_ANY = 1 << 30  # batch size of a prober, which divides what it is given


class Experiment(NamedTuple):
    """What every measurement of a tuning shares.

    Attributes:
        sampler: the engines, whose time is measured.
        prober: runs the same engines, where outputs are.
        program: at full depth.
        choices: full depth first.
        samples: that are made.
        work: keeps what has been measured.
        report: told of each phase.
    """

    sampler: Sampler
    prober: Prober
    program: Program
    choices: tuple[Choice, ...]
    samples: SampleRequest
    work: Work
    report: Report

    def part(self, first: int, n: int) -> Experiment:
        """With some of the samples."""
        part = self.samples.part(self.sampler.interface, first, n)
        return self._replace(samples=part)


def rms(difference: Array) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(difference, dtype=np.float64).mean()))


def engines_of(sampler: Sampler) -> dict[str, Engine]:
    """The engines of a sampler by the names that choices have; the first is ""."""
    members = sampler.engine.members
    if not members:
        return {"": sampler.engine}
    return {name if index else "": engine for index, (name, engine) in enumerate(members.items())}


class Prober(Engine):
    """An engine that runs a sampler's, watches what they give, and replays what is known.

    Attributes:
        watch: told of every evaluation that is not replayed: the step's index, the outputs,
            and the inputs x, t and conditions; None for nobody.
    """

    precision, max_batch = "as its engines", _ANY

    def __init__(self, sampler: Sampler) -> None:
        self.interface = sampler.interface
        self._engines = engines_of(sampler)
        self.exits = sampler.interface.exits
        self.members = {name: _Member(self, name) for name in self._engines}
        self.watch: Callable[[int, Outputs, Array, Array, Inputs], None] | None = None
        self._sampler, self._skipping = Sampler(self, sampler.interface), sampler
        self._replayed: Mapping[int, Outputs] = {}
        self._recorded: dict[int, Outputs] | None = None
        self._steps: Iterator[int] = iter(())

    def run(
        self,
        program: Program,
        samples: SampleRequest,
        *,
        replay: Mapping[int, Outputs] | None = None,
        record: dict[int, Outputs] | None = None,
    ) -> Array:
        """The samples that a program leads to, float32 [n, *shape].

        ``replay`` has outputs by step that are not evaluated again; the outputs of every
        evaluating step are put into ``record``. Raises a NonFiniteError as a sampler does.

        Blocks are skipped by the engines' own sampler: nothing is replayed, recorded or watched.
        """
        if any(step.chosen.cuts for step in program.steps):
            return self._skipping.sample_requests([samples], solver=program)[0]
        self._replayed, self._recorded = replay or {}, record
        self._steps = iter(i for i, step in enumerate(program.steps) if step.chosen.evaluates)
        return self._sampler.sample_requests([samples], solver=program)[0]

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Outputs:
        """See :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        return self._evaluate("", depth, x, t, conditions)

    def ask(self, choice: Choice, x: Array, t: Array, conditions: Inputs) -> Outputs:
        """What a choice gives for these inputs, in batches that its engine takes."""
        engine = self._engines[choice.engine]
        parts = [
            slice(start, start + engine.max_batch) for start in range(0, len(x), engine.max_batch)
        ]
        found = [
            engine.evaluate(
                choice.blocks, x[p], t[p], {name: array[p] for name, array in conditions.items()}
            )
            for p in parts
        ]
        return [np.concatenate(arrays) for arrays in zip(*found, strict=True)]

    def close(self) -> None:
        """Release the buffers; the engines stay open."""

    def _evaluate(self, name: str, depth: int, x: Array, t: Array, given: Inputs) -> Outputs:
        step = next(self._steps)
        outputs = self._replayed.get(step)
        if outputs is None:
            outputs = self.ask(Exit(depth, name), x, t, given)
            if self.watch is not None:
                self.watch(step, outputs, x, t, given)
        if self._recorded is not None:
            self._recorded[step] = outputs
        return outputs


class _Member(Engine):
    """One of a prober's engines, as schedules name it."""

    def __init__(self, prober: Prober, name: str) -> None:
        self.exits, self.precision, self.max_batch = prober.exits, prober.precision, _ANY
        self._prober, self._name = prober, name

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Sequence[Array]:
        return self._prober._evaluate(self._name, depth, x, t, conditions)
