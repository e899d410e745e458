"""Programs from diffusers' schedulers.

What a linear scheduler's ``step`` does to any state, output and noise shows in what it does to
unit vectors, from which the coefficients of each step are read. What the scheduler keeps from
step to step becomes a buffer of its own, so the number of terms does not grow with the steps.
At the end the program and the scheduler run side by side on random tensors, large and small: a
scheduler that clips is not linear, and refused.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from eecompile.arrays import Floats
from eecompile.compiler.schedulers.config import (
    NETWORK_OPTIONS,
    OTHER,
    check_process,
    process_from_scheduler,
    refuse,
    times_of,
)
from eecompile.compiler.schedulers.former import remembering
from eecompile.compiler.schedulers.trace import (
    CHANNELS,
    Row,
    Substituted,
    TracedStep,
    input_of,
    state_after,
    traced,
)
from eecompile.errors import EecompileError, UsageError, summary
from eecompile.programs.process import DATA, Point, Process
from eecompile.programs.program import Program
from eecompile.programs.tape import ChoiceAt, Tape, Value

_TOLERANCE = 1e-4  # relative; tables of diffusers are float32
_SCALES = (1e-3, 1.0, 1e4)  # of the random tensors: small ones pass through a clip, large do not
_CLIPS = ("clip_sample", "clip_denoised", "thresholding")
_BROWNIAN = "BrownianTreeNoiseSampler"


def program_from_scheduler(
    scheduler: Any,
    steps: int | None,
    choice_at: ChoiceAt | None = None,
    *,
    process: Process | None = None,
    options: Mapping[str, float] | None = None,
) -> Program:
    """The program of a diffusers scheduler.

    Args:
        scheduler: of diffusers; it is not changed.
        steps: number of steps, as its ``set_timesteps`` takes it (some schedulers evaluate the
            network more than once a step); None takes the timesteps that it has been set to.
        choice_at: the choice for a time; None leaves all open.
        process: the network's, to which the scheduler's is compared, and whose timesteps the
            network is given; None takes what the scheduler says.
        options: further arguments of its ``step``, such as ``eta``.

    Raises:
        UsageError: the scheduler is not linear, draws noise that a program cannot, needs more
            than state and output, refuses ``steps``, or belongs to another process.
    """
    arguments = dict(options or {})
    scheduler = remembering(scheduler)
    _check_calls(scheduler, arguments)
    ready = _ready(scheduler, steps)
    if process is not None:
        check_process(ready, process)
    known = process or process_from_scheduler(ready)
    trace = traced(ready, arguments)
    points = _points(ready, process)
    tape = Tape(known or Process(), choice_at or (lambda _: None), DATA)
    try:
        sign = _sign(process)
        _write(tape, trace, points, sign)
        program = tape.finish(_name(ready, arguments))
        scale = float(getattr(ready, "init_noise_sigma", 1.0))
        program = msgspec.structs.replace(program, initial=scale, process=known)
    except EecompileError as error:
        refuse(ready, f"gives a program that cannot run ({error.found})", OTHER)
    _check_linear(ready, arguments, program, [step.weights for step in trace], sign)
    return program


def _check_calls(scheduler: Any, options: Mapping[str, float]) -> None:
    """Pass when its ``step`` needs nothing but state, output and these options."""
    step = getattr(scheduler, "step", None)
    if step is None or not hasattr(scheduler, "set_timesteps"):
        refuse(scheduler, "has no step and set_timesteps", OTHER)
    given = {"model_output", "timestep", "sample", *options}
    parameters = inspect.signature(step).parameters
    unknown = [name for name in options if name not in parameters]
    if unknown:
        refuse(scheduler, f"takes no {' or '.join(unknown)}", "leave that option out")
    more = [p.name for p in parameters.values() if p.default is p.empty and p.name not in given]
    if more:
        refuse(scheduler, f"steps with more than state and output ({', '.join(more)})", OTHER)
    if _BROWNIAN in vars(sys.modules[type(scheduler).__module__]):
        refuse(
            scheduler,
            "draws noise from a Brownian tree, dependent from step to step",
            "use DPMSolverMultistepScheduler with algorithm_type 'sde-dpmsolver++', or the native "
            "solver dpmpp-2m-sde:grid=logsnr, whose steps are CosineDPMSolverMultistepScheduler's",
        )
    variance = str(scheduler.config.get("variance_type", ""))
    if variance.startswith("learned") and hasattr(scheduler, "_get_variance"):
        refuse(scheduler, f"reads a {variance} variance", "use the native solver ddpm, which can")


def _ready(scheduler: Any, steps: int | None) -> Any:
    if steps is not None and steps < 1:
        raise UsageError(
            found=f"{steps} steps", expected="at least 1", remedy="choose another number of steps"
        )
    ready = copy.deepcopy(scheduler)
    if steps is not None:
        try:
            ready.set_timesteps(steps)
        except Exception as error:
            refuse(
                scheduler,
                f"refuses {steps} steps ({summary(error)})",
                "choose another number of steps, or call its set_timesteps yourself and pass None",
            )
    elif getattr(scheduler, "step_index", None) is not None:
        refuse(scheduler, "has taken steps already", "call its set_timesteps again")
    if ready.timesteps is None or not len(ready.timesteps):
        refuse(scheduler, "has no timesteps", "give a number of steps")
    return ready


def _name(scheduler: Any, options: Mapping[str, float]) -> str:
    """Its class, and what differs from the class's defaults and is not the network's."""
    kind = type(scheduler)
    defaults = inspect.signature(kind.__init__).parameters
    chosen = {
        name: value
        for name, value in scheduler.config.items()
        if name in defaults
        and name not in NETWORK_OPTIONS
        and isinstance(value, str | int | float)
        and value != defaults[name].default
    }
    words = ", ".join(f"{name}={value}" for name, value in {**chosen, **options}.items())
    name = kind.__name__.removesuffix("Scheduler")
    return f"{name}({words})" if words else name


def _points(scheduler: Any, process: Process | None) -> list[Point]:
    """Time and timestep of each step; alpha and sigma are the scheduler's own affair."""
    stamps = [float(t) for t in scheduler.timesteps]
    times = times_of(scheduler)
    if process is not None and process.family == "edm":
        times = [process.at_ratio(process.sigma_at(stamp)).time for stamp in stamps]
    elif process is not None:
        stamps = [time * process.time_scale + process.time_offset for time in times]
    return [Point(time, stamp, 1.0, 0.0) for time, stamp in zip(times, stamps, strict=True)]


def _sign(process: Process | None) -> float:
    """What the scheduler takes is of the network's output."""
    return -1.0 if process is not None and process.prediction == "flow_to_data" else 1.0


def _write(tape: Tape, steps: list[TracedStep], points: list[Point], sign: float) -> None:
    """Write the steps to ``tape``, which assigns the buffers."""
    values: dict[int, Value] = {}

    def combined(row: Row) -> Value:
        total = Value({})
        for node, coefficient in row.items():
            total = total + values[node] * coefficient
        return total

    for step, point in zip(steps, points, strict=True):
        values[step.start] = tape.state
        values[step.output] = sign * tape.raw(combined(step.input), point)
        rows = (step.state, *(row for _, _, row in step.kept))
        for node in step.noises:
            if any(node in row for row in rows):
                values[node] = tape.noise()
        early = not any(step.start in row for _, _, row in step.kept)
        if early:  # what only the state reads needs no buffer afterwards
            tape.advance(combined(step.state))
        made = [(node, tape.keep(combined(row), _buffer(name))) for node, name, row in step.kept]
        if not early:
            tape.advance(combined(step.state))
        values.update(made)


def _buffer(name: str) -> str:
    name = name.strip("_").replace(".", "_")
    return f"kept_{name}" if name in ("state", "output", "noise", "") else name


def _check_linear(
    scheduler: Any,
    options: Mapping[str, float],
    program: Program,
    weights: list[Floats],
    sign: float,
) -> None:
    """Pass when program and scheduler agree on random tensors, small and large."""
    for seed, scale in enumerate(_SCALES * 2):
        worst = _difference(scheduler, options, program, weights, sign, scale, seed)
        if not worst <= _TOLERANCE:
            config = scheduler.config
            clips = ", ".join(f"{name}=True" for name in _CLIPS if config.get(name))
            refuse(
                scheduler,
                f"is not linear{f' with {clips}' if clips else ''}: on random tensors of scale "
                f"{scale:g} its program differs by {worst:.1e}",
                f"set {clips.replace('True', 'False')}, or use the native solver ddim or ddpm, "
                "which clips"
                if clips
                else OTHER,
            )


def _difference(
    scheduler: Any,
    options: Mapping[str, float],
    program: Program,
    weights: list[Floats],
    sign: float,
    scale: float,
    seed: int,
) -> float:
    """The largest relative difference of any state or input; outputs and noise are random."""
    shape = (2, CHANNELS, 4, 4)
    generator = np.random.default_rng(seed)
    runner = copy.deepcopy(scheduler)
    state = torch.from_numpy(generator.standard_normal(shape)) * (scale * program.initial)
    buffers = {"state": state.numpy().copy()}
    worst = 0.0
    drawn: list[Tensor] = []

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn.append(torch.from_numpy(generator.standard_normal(shape)) * scale)
        return drawn[-1].clone()

    for step, t, shares in zip(program.steps, runner.timesteps, weights, strict=True):
        drawn.clear()
        output = torch.from_numpy(generator.standard_normal(shape)) * scale
        buffers["output"] = sign * output.numpy()
        with Substituted(runner, shape, draw, keep=False):
            x = input_of(runner, state, t).numpy().copy()
            found = sum(term.coefficient * buffers[term.buffer] for term in step.input)
            worst = max(worst, float(np.abs(found - x).max() / np.abs(x).max()))
            state = state_after(runner, output, t, state, options)
        noises = zip(shares, drawn, strict=False)
        buffers["noise"] = sum((w * n.numpy() for w, n in noises), np.zeros(shape))
        for update in step.updates:
            buffers[update.into] = sum(
                (term.coefficient * buffers[term.buffer] for term in update.terms),
                np.zeros(shape),
            )
        difference = np.abs(buffers["state"] - state.numpy()).max()
        worst = max(worst, float(difference / np.abs(state.numpy()).max()))
    return worst
