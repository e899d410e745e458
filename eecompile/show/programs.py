"""What ``program`` and ``inspect`` show of programs."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from eecompile.programs.interface import Interface
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.show.table import Column, FactList, Part, Table, words

WIDTH = 30  # columns of a schedule's chart
_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = 5  # steps of a program that are shown at either end


def chart(blocks: Sequence[int], full: int) -> str:
    """A bar for each number of blocks."""
    return "".join(_BARS[max(1, round(count / full * len(_BARS))) - 1] for count in blocks)


def program_facts(program: Program, interface: Interface | None = None) -> FactList:
    """A program in a few lines; ``interface`` is that of the network it is for, if known."""
    steps, process, buffers = program.steps, program.process, program.buffers
    noisy = sum(step.reads_noise for step in steps)
    noise = f"drawn in {noisy} of {len(steps)} steps" if noisy else "none after that"
    if any(step.log_variances for step in steps):
        noise += ", as large as the network says"
    return FactList(
        {
            "program": program.solver,
            "evaluations": str(len(steps)),
            "process": "unknown" if process is None else process_words(process),
            "buffers": f"{len(buffers)}: {', '.join(buffers)}",
            "start": f"normal noise times {program.initial:.6g}",
            "noise": noise,
            "choices": _choices(program, interface),
        }
    )


def program_parts(
    program: Program, interface: Interface | None = None, *, whole: bool = False
) -> list[Part]:
    """What ``eecompile inspect`` shows of a program; ``whole`` shows every step, not some."""
    stamped, count = any(step.time is not None for step in program.steps), len(program.steps)
    numbers = ["step", "t", *(["time"] if stamped else []), "choice"]
    columns = [
        *(Column(name, itemgetter(place)) for place, name in enumerate(numbers)),
        words("network's input", itemgetter(-2)),
        words("updates, in order", itemgetter(-1)),
    ]
    rows = [[str(index), *_cells(step, stamped)] for index, step in enumerate(program.steps)]
    if not whole and count > 2 * _SHOWN + 1:
        empty = [""] * (len(columns) - 2)
        rows[_SHOWN:-_SHOWN] = [["...", *empty, "... (--all shows all)"]]
    return [program_facts(program, interface), Table("steps", "steps", columns, rows)]


def _cells(step: Step, stamped: bool) -> list[str]:
    return [
        f"{step.timestep:.6g}",
        *([f"{step.moment:.6g}"] if stamped else []),
        "open" if step.choice is None else step.choice.text,
        _sum(step.input),
        "\n".join(map(_update, step.updates)),
    ]


def _update(update: Update) -> str:
    terms = _sum(update.terms)
    if update.clip is not None:
        terms = f"clip({terms}; {update.clip[0]:g} to {update.clip[1]:g})"
    return f"{update.into} = {terms}"


def _sum(terms: Sequence[Term]) -> str:
    """As one writes it: ``0.98 state - 0.05 output``."""
    text = ""
    for term in terms:
        sign = "-" if term.coefficient < 0 else "+"
        factor = f"{abs(term.coefficient):.4g} ".removeprefix("1 ")
        between = f" {sign} " if text else sign.replace("+", "")
        text += f"{between}{factor}{term.buffer}"
    return text


def _choices(program: Program, interface: Interface | None) -> str:
    """The depth of each step as a chart, and what they cost together."""
    choices = [step.choice for step in program.steps if step.choice is not None]
    if len(choices) < len(program.steps):
        return "open: an exit schedule chooses them when it is sampled"
    depths = [choice.blocks for choice in choices]
    full = max(depths) if interface is None else interface.exits[-1]
    sets = dict.fromkeys(choice.engine for choice in choices if choice.engine)
    named = f", on {', '.join(sets)}" if sets else ""
    columns = min(len(depths), WIDTH)
    shown = chart([depths[column * len(depths) // columns] for column in range(columns)], full)
    if interface is None:
        return f"{shown}  {min(depths)} to {full}, mean {sum(depths) / len(depths):.3g}{named}"
    share = sum(map(interface.cost, choices)) / len(choices)
    return f"{shown}  {share:.0%} of the {'cost' if interface.costs else 'blocks'}{named}"


def process_words(process: Process) -> str:
    """A process, and what the network predicts of it."""
    if process.family == "diffusion":
        betas = process.betas if isinstance(process.betas, str) else "listed"
        words = f"diffusion, T = {process.timesteps}, {betas} betas"
        words += f", SNR / {process.snr_shift:g}" if process.snr_shift != 1 else ""
        words += ", zero terminal SNR" if process.zero_terminal_snr else ""
    elif process.family == "flow":
        words = f"flow, T = {process.timesteps}, shift {process.shift:g}"
    else:
        words = f"EDM, sigma from {process.sigma_min:g} to {process.sigma_max:g}"
    return f"{words}, predicts {process.prediction}"
