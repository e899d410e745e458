"""Names of values in graphs."""

from __future__ import annotations

__all__ = ["output_name"]


def output_name(depth: int) -> str:
    """Name of an exit's prediction."""
    return f"prediction_{depth:03d}"
