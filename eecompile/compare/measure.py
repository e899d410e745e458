"""Latencies of runners, and the inputs at which outputs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np

from eecompile.arrays import AnyArray
from eecompile.compare.candidates import Opened
from eecompile.compare.report import EvaluationLatency
from eecompile.compiler.verify import random_inputs
from eecompile.errors import EecompileError
from eecompile.interrupt import check
from eecompile.measure.machine import short
from eecompile.measure.timing import Timings, interleaved, percentiles
from eecompile.programs.interface import Interface

Point = dict[str, AnyArray]


def latency(batch: int, seconds: Sequence[float]) -> EvaluationLatency:
    """Median and 90th percentile, in milliseconds."""
    _, median, p90 = percentiles(seconds)
    return EvaluationLatency(batch=batch, median=1e3 * median, p90=1e3 * p90, rounds=len(seconds))


def latencies(
    candidates: Mapping[str, Opened],
    interface: Interface,
    depth: int,
    batch: int,
    *,
    rounds: int | None,
    seconds: float = 2.0,
) -> Timings[str]:
    """Seconds of one exit at one batch size, of all candidates that take such batches."""
    feed = random_inputs(interface, batch, interface.process.timesteps // 2, seed=batch)
    failures: dict[str, Exception] = {}
    with ExitStack() as stack:
        actions = {}
        for name, candidate in candidates.items():
            if candidate.engine.max_batch < batch:
                continue
            try:
                runner = stack.enter_context(candidate.runner(depth))
            except Exception as error:  # a library's errors share no base class
                check()
                failures[name] = error
            else:
                actions[name] = partial(runner.infer, feed, check_inputs=False)
        timings = interleaved(actions, rounds=rounds, seconds=seconds, twice=True)
    return Timings(timings.seconds, timings.failures | failures)


def points(interface: Interface, batches: Sequence[int]) -> list[Point]:
    """Inputs at seven times t from 0 to T - 1, two samples each if a batch is as large.

    At the middle also the largest batch. The input is noise at every time, as in the
    compiler's own verification.
    """
    last = interface.process.timesteps - 1
    times = sorted({round(time) for time in np.linspace(0, last, 7)})
    few = min(2, max(batches))
    made = [random_inputs(interface, few, time, seed=index) for index, time in enumerate(times)]
    middle = times[len(times) // 2]
    made.append(random_inputs(interface, max(batches), middle, seed=len(times)))
    return made


def sentence(error: Exception) -> str:
    """What failed, in one line."""
    text = str(error) if isinstance(error, EecompileError) else f"{type(error).__name__}: {error}"
    return short(text, 300)


@contextmanager
def quiet() -> Iterator[None]:
    """Polygraphy prints nothing: what fails is raised, and told by us."""
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield
