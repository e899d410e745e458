"""How the compiler says what it is doing."""

from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """Told as work goes on; may raise KeyboardInterrupt to stop it."""

    def __call__(self, phase: str, done: int = 0, total: int = 0) -> None:
        """``phase`` is under way: ``done`` steps of ``total``, or of unknown number (0)."""
        ...


def silent(phase: str, done: int = 0, total: int = 0) -> None:
    """Reports nothing."""
