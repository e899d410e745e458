"""The solvers that ship, one a file. Each is a pure function that returns a program."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import msgspec

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import UsageError
from eecompile.programs.process import Family, Process
from eecompile.programs.program import Program
from eecompile.programs.solvers.ddim import ddim
from eecompile.programs.solvers.ddpm import ddpm
from eecompile.programs.solvers.deis import deis
from eecompile.programs.solvers.dpm_solver import dpm_solver_2, dpm_solver_3
from eecompile.programs.solvers.dpmpp import dpmpp_2m, dpmpp_3m
from eecompile.programs.solvers.dpmpp_sde import dpmpp_2m_sde, dpmpp_3m_sde
from eecompile.programs.solvers.euler import euler
from eecompile.programs.solvers.euler_ancestral import euler_ancestral
from eecompile.programs.solvers.euler_maruyama import euler_maruyama
from eecompile.programs.solvers.f_pndm import f_pndm
from eecompile.programs.solvers.flow_euler import flow_euler
from eecompile.programs.solvers.flow_heun import flow_heun
from eecompile.programs.solvers.heun import heun
from eecompile.programs.solvers.lcm import lcm
from eecompile.programs.solvers.pndm import pndm
from eecompile.programs.solvers.s_pndm import s_pndm
from eecompile.programs.solvers.unipc import unipc
from eecompile.programs.tape import ChoiceAt

__all__ = [
    "FACTS",
    "SOLVERS",
    "Facts",
    "Solver",
    "ddim",
    "ddpm",
    "deis",
    "dpm_solver_2",
    "dpm_solver_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "euler",
    "euler_ancestral",
    "euler_maruyama",
    "f_pndm",
    "flow_euler",
    "flow_heun",
    "heun",
    "lcm",
    "pndm",
    "s_pndm",
    "solver_named",
    "unipc",
]


class Solver(Protocol):
    """What a solver is: a function of the process, the steps and the choice for a time."""

    def __call__(
        self,
        process: Process,
        steps: int,
        choice_at: ChoiceAt,
        *,
        clip: tuple[float, float] | None = None,
    ) -> Program:
        """The program of a trajectory.

        The native solvers' docstrings tell only what is particular to each.

        Args:
            process: of the families that the solver takes.
            steps: number of steps, 1 to T.
            choice_at: the choice for a time t within [0, T), or None to leave it open.
            clip: bounds of the predicted data, or None.

        The native ones also take ``grid``, the moments to visit; see
        :func:`eecompile.programs.grids.points`.

        Raises:
            UsageError: an argument is out of range, or the family is another.
        """


class Facts(msgspec.Struct, frozen=True):
    """What is known of a solver; docs/solvers.md has it as a table.

    Attributes:
        solver: the function.
        source: paper, as "arXiv" and its number.
        order: with which it converges as steps grow, where sigma is smooth in time and the
            grid fine (the stochastic ones in distribution); None where more steps are no aim.
        evaluations: of the network, a step.
        extra: evaluations beyond these in a trajectory, negative where there are fewer.
        stochastic: whether it draws noise in its steps, at its default options.
        families: of processes that it takes.
    """

    solver: Solver
    source: str
    order: int | None = 1
    evaluations: int = 1
    extra: int = 0
    stochastic: bool = False
    families: tuple[Family, ...] = ("diffusion", "flow", "edm")


_NO_FLOW: tuple[Family, ...] = ("diffusion", "edm")

FACTS: Mapping[str, Facts] = MappingProxyType(
    {
        "ddpm": Facts(ddpm, "arXiv 2006.11239", stochastic=True),
        "ddim": Facts(ddim, "arXiv 2010.02502"),
        "pndm": Facts(pndm, "arXiv 2202.09778", 2, extra=1, families=_NO_FLOW),
        "s-pndm": Facts(s_pndm, "arXiv 2202.09778", 2, extra=1, families=_NO_FLOW),
        "f-pndm": Facts(f_pndm, "arXiv 2202.09778", 2, extra=9, families=_NO_FLOW),
        "dpm-solver-2": Facts(dpm_solver_2, "arXiv 2206.00927", 2),
        "dpm-solver-3": Facts(dpm_solver_3, "arXiv 2206.00927", 3),
        "dpmpp-2m": Facts(dpmpp_2m, "arXiv 2211.01095", 2),
        "dpmpp-3m": Facts(dpmpp_3m, "arXiv 2211.01095", 2),
        "dpmpp-2m-sde": Facts(dpmpp_2m_sde, "arXiv 2211.01095", stochastic=True),
        "dpmpp-3m-sde": Facts(dpmpp_3m_sde, "arXiv 2211.01095", stochastic=True),
        "unipc": Facts(unipc, "arXiv 2302.04867", 3),
        "deis": Facts(deis, "arXiv 2204.13902", 2),
        "euler": Facts(euler, "arXiv 2206.00364"),
        "euler-ancestral": Facts(euler_ancestral, "arXiv 2010.02502", stochastic=True),
        "heun": Facts(heun, "arXiv 2206.00364", 2, 2, -1, families=_NO_FLOW),
        "euler-maruyama": Facts(
            euler_maruyama, "arXiv 2011.13456", stochastic=True, families=("diffusion",)
        ),
        "lcm": Facts(lcm, "arXiv 2310.04378", None, stochastic=True, families=("diffusion",)),
        "flow-euler": Facts(flow_euler, "arXiv 2209.03003", families=("flow",)),
        "flow-heun": Facts(flow_heun, "arXiv 2209.03003", 2, 2, -1, families=("flow",)),
    }
)
SOLVERS: Mapping[str, Solver] = MappingProxyType(
    {name: facts.solver for name, facts in FACTS.items()}
)


def solver_named(text: str) -> Solver:
    """A solver by name, with options if it has any: ``ddim`` or ``ddim:eta=0.5,grid=karras``.

    Raises:
        UsageError: there is no such solver, or it has no such option.
    """
    name, _, settings = text.partition(":")
    if name not in SOLVERS:
        raise UsageError(
            found=f"solver {name!r}",
            expected=f"one of {sorted(SOLVERS)}",
            remedy="choose one of these, or give a function",
        )
    known = inspect.signature(SOLVERS[name]).parameters.values()
    # The clip is the process's business, and ranges are for functions only.
    options = {
        each.name: "" if each.default is None else each.default
        for each in known
        if each.kind == each.KEYWORD_ONLY and each.name not in ("clip", "churn_range")
    }
    given: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        option, equals, value = setting.partition("=")
        read = _value(value)
        if not equals or option in given or not _alike(options.get(option), read):
            likes = (f"{key} ({type(kind).__name__})" for key, kind in options.items())
            raise UsageError(
                found=f"option {setting[:100]!r} of solver {name}",
                expected=f"OPTION=VALUE, each once, of {', '.join(likes)}",
                remedy=f"for example {name}:grid=karras",
            )
        given[option] = read
    return partial(SOLVERS[name], **given) if given else SOLVERS[name]


def _value(text: str) -> float | str | bool:
    """A number, ``true`` or ``false``, or a word."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return from_json(text, int | float | bool)
    except MalformedError:
        return text


def _alike(default: object, value: object) -> bool:
    """Whether a value is of the kind of an option's default; whole numbers are numbers too."""
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return default is not None and type(value) is type(default)
