"""Running programs with an engine that watches: it records, replays, and asks for more.

A prober stands in for an engine in an ordinary sampler, so nothing of the runtime's insides
is needed. What a program shares with one that ran before, from its beginning, is not
evaluated again: the outputs are replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from eecompile.arrays import Array, Inputs
from eecompile.programs.choice import Exit
from eecompile.programs.interface import Interface
from eecompile.programs.program import Program
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler

__all__ = ["Outputs", "Prober", "Samples", "engines_of"]

Outputs = list[Array]
_ANY = 1 << 30  # batch size of a prober, which divides what it is given


class Samples(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """Which samples to draw: ``n`` from index ``first`` on of a seed.

    Attributes:
        n: how many.
        first: index of the first.
        seed: of the noise.
        guidance: scale of classifier-free guidance; 1 is none.
        guidance_interval: times t between which it acts; None takes the network's own.
        shape: of a sample; None takes the network's own.
        conditions: by name, a value for all samples, or values that the samples take in
            turn, by their index.
        nulls: by condition, what stands for "no condition".
    """

    n: int
    first: int = 0
    seed: int = 0
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    shape: tuple[int, ...] | None = None
    conditions: Mapping[str, Any] = {}
    nulls: Mapping[str, Any] = {}

    def part(self, first: int, n: int) -> Samples:
        """``n`` of these, from index ``first`` on."""
        return msgspec.structs.replace(self, first=first, n=n)

    def draw(self, sampler: Sampler, program: Program) -> Array:
        """Sample; float32 [n, *shape]."""
        return sampler.sample(
            self.n,
            solver=program,
            seed=self.seed,
            first=self.first,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            shape=self.shape,
            nulls=self.nulls,
            **self._values(sampler.interface),
        )

    def _values(self, interface: Interface) -> dict[str, Any]:
        """The conditions of these samples; what the sampler must refuse is left as it is."""
        made = dict(self.conditions)
        for name, given in self.conditions.items():
            spec, values = interface.conditions.get(name), np.asarray(given)
            if spec is not None and values.ndim == len(spec.shape) + 1 and len(values):
                made[name] = values[np.arange(self.first, self.first + self.n) % len(values)]
        return made


def engines_of(sampler: Sampler) -> dict[str, Engine]:
    """The engines of a sampler by the names that choices have; the first is ""."""
    members = sampler.engine.members
    if not members:
        return {"": sampler.engine}
    return {name if index else "": engine for index, (name, engine) in enumerate(members.items())}


class Prober(Engine):
    """An engine that runs others, watches what they give, and replays what is known.

    Args:
        sampler: whose engines it runs; they stay open.

    Attributes:
        interface: of the network.
        watch: told of every evaluation that is not replayed: the step's index, and the
            inputs x, t and conditions; None for nobody.
    """

    precision, max_batch = "as its engines", _ANY

    def __init__(self, sampler: Sampler) -> None:
        self.interface = sampler.interface
        self._engines = engines_of(sampler)
        self.exits = sampler.interface.exits
        self.members = {name: _Member(self, name) for name in self._engines}
        self.watch: Callable[[int, Outputs, Array, Array, Inputs], None] | None = None
        self._sampler = Sampler(self, sampler.interface)
        self._sampler.engines = tuple(self.members)
        self._replayed: Mapping[int, Outputs] = {}
        self._recorded: dict[int, Outputs] | None = None
        self._steps: Iterator[int] = iter(())

    def run(
        self,
        program: Program,
        samples: Samples,
        *,
        replay: Mapping[int, Outputs] | None = None,
        record: dict[int, Outputs] | None = None,
    ) -> Array:
        """The samples that a program leads to, float32 [n, *shape].

        Args:
            program: every depth is chosen.
            samples: which ones.
            replay: outputs by step, which are not evaluated again.
            record: where the outputs of every evaluating step are put.

        Raises:
            NonFiniteError: an engine returned NaN or infinity.
        """
        self._replayed, self._recorded = replay or {}, record
        self._steps = iter(i for i, step in enumerate(program.steps) if step.chosen.evaluates)
        return samples.draw(self._sampler, program)

    def evaluate(self, depth: int, x: Array, t: Array, conditions: Inputs) -> Outputs:
        """See :meth:`eecompile.runtime.protocol.Engine.evaluate`."""
        return self._evaluate("", depth, x, t, conditions)

    def ask(self, choice: Exit, x: Array, t: Array, conditions: Inputs) -> Outputs:
        """What a choice gives for these inputs, in batches that its engine takes."""
        engine = self._engines[choice.engine]
        parts = [
            slice(start, start + engine.max_batch) for start in range(0, len(x), engine.max_batch)
        ]
        found = [
            engine.evaluate(
                choice.depth, x[p], t[p], {name: array[p] for name, array in conditions.items()}
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
