"""Names of values in graphs."""

from __future__ import annotations

from eecompile.programs.interface import Interface


def output_name(depth: int, output: str = "prediction") -> str:
    """Name of one of an exit's outputs."""
    return f"{output}_{depth:03d}"


def output_names(interface: Interface, depth: int) -> tuple[str, ...]:
    """Names of an exit's outputs: its prediction, and a learned variance."""
    return tuple(output_name(depth, output) for output in interface.outputs)
