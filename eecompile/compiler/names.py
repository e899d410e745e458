"""Names of values in graphs."""

from __future__ import annotations

from eecompile.programs.interface import Interface


def output_names(interface: Interface, depth: int) -> tuple[str, ...]:
    """Names of an exit's outputs: its prediction, and a learned variance."""
    return tuple(f"{output}_{depth:03d}" for output in interface.outputs)
