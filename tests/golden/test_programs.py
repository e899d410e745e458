"""What every native solver compiles to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from eecompile import ExitSchedule, FakeEngine, Interface, Process, Program, Sampler, State
from tests.golden.adapters import FAMILIES, json_of_program
from tests.golden.stored import FOLDER, check

PREDICTIONS: dict[str, Any] = {"diffusion": "epsilon", "flow": "flow", "edm": "edm"}
SHIPPED = Process(betas="cosine", prediction="v_prediction")
LEARNED = Process(variance="learned_range")
DEPTHS = "12,9,6,3"
Case = tuple[Process, str, str]
OTHERS: dict[str, dict[str, Case]] = {
    "reuse": {
        "ddim": (SHIPPED, "ddim", "12,again,9,again,3"),
        "dpmpp-2m": (SHIPPED, "dpmpp-2m", "again,12,again,3"),
        "heun": (SHIPPED, "heun", "12:0.2,again:0.6,6"),
    },
    "engines": {
        "ddim": (SHIPPED, "ddim", "12@cpu,9,6@gpu-fp16,3@cpu"),
        "dpmpp-2m": (SHIPPED, "dpmpp-2m", "12@cpu:0.3,again:0.6,3@cpu"),
    },
    "processes": {
        "learned variance": (LEARNED, "ddpm", DEPTHS),
        "large variance": (Process(variance="fixed_large"), "ddpm", DEPTHS),
        "velocity": (SHIPPED, "ddim", DEPTHS),
        "data": (Process(betas="scaled_linear", prediction="sample"), "unipc", DEPTHS),
        "shifted flow": (
            Process(family="flow", prediction="flow", shift=3.0, time_scale=0.001),
            "dpmpp-2m",
            DEPTHS,
        ),
    },
    "grids": {
        grid: (Process(), f"ddim:grid={grid}", DEPTHS)
        for grid in ("trailing", "leading", "linspace", "karras", "logsnr", "quadratic")
    },
    "options": {
        text: (Process(), text, DEPTHS)
        for text in (
            "ddim:eta=0.5",
            "dpm-solver-2:form=data",
            "dpmpp-3m:halved=False",
            "unipc:order=3",
            "deis:order=3",
            "euler-ancestral:eta=0.3",
            "heun:churn=2.0,churn_scale=1.01",
            "lcm:distilled=20",
        )
    },
}


def network(process: Process, *, clipped: bool = False) -> Interface:
    """A network of which nothing else matters."""
    state = State(shape=(1, 4, 4), range=(-1.0, 1.0) if clipped else None)
    return Interface(name="any", exits=(3, 6, 9, 12), state=state, process=process)


def compiled(
    process: Process, solver: str, schedule: str, *, steps: int = 4, clipped: bool = False
) -> Program:
    """The program of a solver for such a network."""
    interface = network(process, clipped=clipped)
    engine = FakeEngine(interface.exits, lambda depth, x, t, conditions: x)
    return Sampler(engine, interface).program(solver, steps, ExitSchedule.parse(schedule))


def shown(programs: dict[str, Program]) -> str:
    """JSON that has a line for each step."""
    parts = []
    for name, program in programs.items():
        assert Program.from_json(program.to_json()) == program
        rest = json_of_program(program)
        steps = ",\n".join(json.dumps(step) for step in rest.pop("steps"))
        parts.append(f"{json.dumps(name)}: [{json.dumps(rest)},\n{steps}\n]")
    return "{" + ",\n".join(parts) + "}\n"


@pytest.mark.parametrize("solver", FAMILIES)
def test_every_solver(solver: str) -> None:
    processes = {
        family: Process(family=family, prediction=PREDICTIONS[family])
        for family in FAMILIES[solver]
    }
    programs = {name: compiled(made, solver, DEPTHS) for name, made in processes.items()}
    check(f"programs/{solver}.json", shown(programs), numbers=True)


@pytest.mark.parametrize("group", OTHERS)
def test_other_schedules_processes_and_options(group: str) -> None:
    programs = {name: compiled(*case) for name, case in OTHERS[group].items()}
    check(f"programs/{group}.json", shown(programs), numbers=True)


def test_data_that_is_clipped() -> None:
    programs = {
        solver: compiled(SHIPPED, solver, DEPTHS, clipped=True)
        for solver in ("ddpm", "ddim", "dpmpp-2m")
    }
    check("programs/clips.json", shown(programs), numbers=True)


def test_the_file_of_a_program() -> None:
    text = compiled(SHIPPED, "dpmpp-2m", "12@cpu,again,3", clipped=True).to_json().decode()
    check("programs/as-written.json", text, numbers=True)


def test_no_file_is_left_over() -> None:
    names = {*FAMILIES, *OTHERS, "clips", "as-written"}
    assert {path.stem for path in (FOLDER / "programs").iterdir()} == names
