"""What a server counts, in Prometheus's form."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from eecompile.runtime.sampling import StepMetrics
from eecompile.serve.jobs import BatchMetrics
from eecompile.serve.scheduler import Scheduler

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._steps = Counter(
            "eecompile_steps", "Steps of requests.", ["engine", "choice"], registry=registry
        )
        self._step_seconds = Counter(
            "eecompile_step_seconds",
            "Seconds in the engines, divided among requests by rows.",
            ["engine", "choice"],
            registry=registry,
        )
        self._rows = Histogram(
            "eecompile_batch_rows", "Rows of a batch.", buckets=_ROWS, registry=registry
        )
        self._batch_seconds = Histogram(
            "eecompile_batch_seconds", "Seconds of a batch.", buckets=_SECONDS, registry=registry
        )
        self._request_seconds = Histogram(
            "eecompile_request_seconds",
            "Seconds of a request to /samples, by status.",
            ["status"],
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, scheduler: Scheduler) -> None:
        """Show a scheduler's queue."""
        for name, what in (("waiting", "not begun"), ("active", "on their way")):
            gauge = Gauge(f"eecompile_{name}_samples", f"Samples {what}.", registry=self._registry)
            gauge.set_function(partial(_samples, scheduler, name))

    def step(self, told: StepMetrics) -> None:
        """Count a step; a sampler's ``on_step``."""
        labels = told.engine, told.choice.text
        self._steps.labels(*labels).inc()
        self._step_seconds.labels(*labels).inc(told.seconds)

    def batch(self, told: BatchMetrics) -> None:
        """Count a batch; a scheduler's ``on_batch``."""
        self._rows.observe(told.rows)
        self._batch_seconds.observe(told.seconds)

    def request(self, status: int, seconds: float) -> None:
        """Count a request; status 499 is a caller that has gone."""
        self._request_seconds.labels(str(status)).observe(seconds)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)


def _samples(scheduler: Scheduler, which: str) -> float:
    load = scheduler.load()
    return float(load.waiting if which == "waiting" else load.active)
