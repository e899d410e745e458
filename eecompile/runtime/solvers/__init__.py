"""The solvers that ship, one a file. Each is a pure function that returns a program."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from eecompile.runtime.process import Process
from eecompile.runtime.program import Program
from eecompile.runtime.solvers._common import DepthAt
from eecompile.runtime.solvers.ddim import ddim
from eecompile.runtime.solvers.ddpm import ddpm

__all__ = ["SOLVERS", "Solver", "ddim", "ddpm"]


class Solver(Protocol):
    """What a solver is: a function of the process, the steps and the depth for a timestep."""

    def __call__(
        self,
        process: Process,
        steps: int,
        depth_at: DepthAt,
        *,
        clip: tuple[float, float] | None = None,
    ) -> Program:
        """The program for ``steps`` steps; ``clip`` bounds the predicted data."""
        ...


SOLVERS: Mapping[str, Solver] = MappingProxyType({"ddim": ddim, "ddpm": ddpm})
