"""What the command line shows of bundles, engine sets, schedules and the machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from eecompile.doctor.examine import Report
from eecompile.doctor.probes import Answer
from eecompile.measure.machine import Gpu
from eecompile.programs.interface import Condition, Interface
from eecompile.programs.process import Process
from eecompile.programs.program import Program, Step, Term, Update
from eecompile.programs.schedule import ExitSchedule
from eecompile.store.bundle import WEIGHTS, BundleManifest, EngineManifest

__all__ = [
    "bundle_report",
    "doctor_report",
    "engine_report",
    "exits_table",
    "human_bytes",
    "planned_report",
    "program_facts",
    "program_report",
]

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 30  # columns of a schedule's chart
_SHOWN = 5  # steps of a program that are shown at either end


def human_bytes(count: int) -> str:
    """A size with a binary unit: ``14.0 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def exits_table(manifest: BundleManifest) -> Table:
    """A row per exit: depth, nodes, parameters, its own bytes, worst error."""
    table = Table(title="exits", title_justify="left")
    headings = (
        "depth",
        "nodes",
        "parameters",
        "weights",
        "unique",
        "worst error",
        "relative",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for exit_ in manifest.exits:
        table.add_row(
            str(exit_.depth),
            str(exit_.nodes),
            f"{exit_.parameters:,}",
            human_bytes(exit_.bytes),
            human_bytes(exit_.unique_bytes),
            f"{exit_.worst_error:.1e}",
            f"{exit_.relative_error:.1e}",
        )
    return table


def sharing_table(manifest: BundleManifest) -> Table:
    """A row per set of exits: what exactly they share, in nodes and in bytes of weights."""
    table = Table(title="sharing", title_justify="left")
    for heading in ("just these exits", "nodes", "weights"):
        table.add_column(heading, justify="right")
    for shared in manifest.sharing:
        name = (
            "all" if len(shared.exits) == len(manifest.exits) else " ".join(map(str, shared.exits))
        )
        table.add_row(name, str(shared.nodes), human_bytes(shared.bytes))
    return table


def bundle_report(manifest: BundleManifest) -> RenderableType:
    """All that ``eecompile inspect`` shows of a bundle."""
    total = sum(record.bytes for record in manifest.files)
    apart = sum(exit_.bytes for exit_ in manifest.exits)
    weights = sum(record.bytes for record in manifest.files if record.name == WEIGHTS)
    facts = {
        "bundle": manifest.interface.name,
        "size": f"{human_bytes(total)} in {len(manifest.files)} files",
        "shared": f"weights of all exits {human_bytes(weights)}; stored apart {human_bytes(apart)}",
        "verified": f"timesteps {list(manifest.checked_timesteps)}, "
        f"batches {list(manifest.checked_batches)}, against {manifest.reference}",
        "made by": _versions(manifest.versions),
    }
    return Group(
        _facts(facts | _inputs(manifest.interface)),
        exits_table(manifest),
        sharing_table(manifest),
        _schedules(manifest.interface),
    )


def engine_report(manifest: EngineManifest) -> RenderableType:
    """All that ``eecompile inspect`` shows of an engine set."""
    target = manifest.target
    total = sum(record.bytes for record in manifest.files)
    facts = {
        "engine set": f"{manifest.interface.name} for {target.name}",
        "target": f"{target.backend}, {target.precision}, {target.layout}, batch "
        f"{target.batch.min} to {target.batch.max}",
        "size": f"{human_bytes(total)} in {len(manifest.files)} files",
        "verified": manifest.verified,
        "made by": _versions(manifest.versions),
    }
    segments = Table(title="segments", title_justify="left")
    for heading in ("segment", "exits that need it", "nodes", "weights", "reads", "makes"):
        segments.add_column(heading, justify="right")
    for index, segment in enumerate(manifest.segments):
        segments.add_row(
            str(index),
            " ".join(map(str, segment.exits)),
            str(segment.nodes),
            human_bytes(segment.bytes),
            str(len(segment.inputs)),
            str(len(segment.outputs)),
        )
    exits = Table(title="exits", title_justify="left")
    for heading in ("depth", "segments run", "worst error", "relative", "mean error"):
        exits.add_column(heading, justify="right")
    for plan in manifest.exits:
        run = " ".join(map(str, plan.segments))
        errors = (plan.worst_error, plan.relative_error, plan.mean_error)
        exits.add_row(str(plan.depth), run, *(f"{error:.1e}" for error in errors))
    interface = manifest.interface
    inputs = _facts(facts | _inputs(interface))
    warnings = [Text(f"warning: {text}", style="yellow") for text in manifest.warnings]
    return Group(inputs, *warnings, segments, exits, _points(manifest), _schedules(interface))


def _points(manifest: EngineManifest) -> Table:
    """Relative error of each exit at each timestep that was checked, over all batches."""
    table = Table(title="relative error by timestep", title_justify="left")
    table.add_column("t", justify="right")
    for plan in manifest.exits:
        table.add_column(f"exit {plan.depth}", justify="right")
    for timestep in sorted({p.timestep for plan in manifest.exits for p in plan.points}):
        errors = (
            max(p.relative for p in plan.points if p.timestep == timestep)
            for plan in manifest.exits
        )
        table.add_row(f"{timestep:g}", *(f"{error:.1e}" for error in errors))
    return table


def planned_report(
    reasons: Sequence[str], segments: Sequence[tuple[str, Sequence[int], int, bool]]
) -> RenderableType:
    """What a build would do: why, and for each segment (file, exits, bytes, reused) what."""
    if not reasons:
        return Text("up to date: nothing would be built")
    table = Table(title="segments", title_justify="left")
    for heading in ("segment", "exits that need it", "weights", "engine"):
        table.add_column(heading)
    for file, exits, size, reused in segments:
        engine = Text("kept", style="green") if reused else Text("built")
        table.add_row(Text(file), " ".join(map(str, exits)), human_bytes(size), engine)
    return Group(Text("would be built, because of"), *(Text(f"  {r}") for r in reasons), table)


def doctor_report(report: Report) -> RenderableType:
    """All that ``eecompile doctor`` shows: the machine, backends, tools, what to do."""
    facts = {
        "eecompile": f"{report.eecompile}, Python {report.python}, {report.system}",
        "CPU": f"{report.cpu.model}, {report.cpu.cores} cores",
        "": ", ".join(report.cpu.instructions) or "no instruction set that matters here",
    }
    gpus = {f"GPU {index}": _gpu(gpu) for index, gpu in enumerate(report.gpus)}
    backends = _columns("backends", "backend", "version", "builds", "runs", "found")
    for backend in report.backends:
        words = (_yes(backend.builds), _yes(backend.runs), Text(backend.detail))
        backends.add_row(backend.name, backend.version, *words)
    tools = _columns("tools of the compiler", "tool", "version", "for", "works")
    for tool in report.tools:
        tools.add_row(tool.name, tool.version, tool.purpose, _yes(tool.works))
    facts |= gpus or {"GPU": f"none: {report.no_gpu}"}
    return Group(_facts(facts), backends, tools, *_todo(report))


def program_facts(program: Program, interface: Interface | None = None) -> RenderableType:
    """A program in a few lines; ``interface`` is that of the network it is for, if known."""
    steps = program.steps
    process = program.process
    noisy = sum(step.reads_noise for step in steps)
    learned = any(step.log_variances for step in steps)
    buffers = program.buffers
    return _facts(
        {
            "program": program.solver,
            "evaluations": str(len(steps)),
            "process": "unknown"
            if process is None
            else f"{_process(process)}, predicts {process.prediction}",
            "buffers": f"{len(buffers)}: {', '.join(buffers)}",
            "start": f"normal noise times {program.initial:.6g}",
            "noise": (f"drawn in {noisy} of {len(steps)} steps" if noisy else "none after that")
            + (", as large as the network says" if learned else ""),
            "depths": _depths(program, interface),
        }
    )


def program_report(
    program: Program, interface: Interface | None = None, *, whole: bool = False
) -> RenderableType:
    """All that ``eecompile inspect`` shows of a program.

    Args:
        program: to show.
        interface: of the network that it is for, if known.
        whole: show every step, not only the first and the last.
    """
    stamped = any(step.time is not None for step in program.steps)
    table = Table(title="steps", title_justify="left")
    for heading in ("step", "t", *(["time"] if stamped else []), "depth"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("network's input", overflow="fold")
    table.add_column("updates, in order", overflow="fold")
    count = len(program.steps)
    for index, step in enumerate(program.steps):
        if whole or count <= 2 * _SHOWN + 1 or not _SHOWN <= index < count - _SHOWN:
            table.add_row(str(index), *_step(step, stamped))
        elif index == _SHOWN:
            table.add_row("...", *("" for _ in range(2 + stamped)), "", "... (--all shows all)")
    return Group(program_facts(program, interface), table)


def _step(step: Step, stamped: bool) -> Iterator[RenderableType]:
    """What a row says of a step."""
    yield f"{step.timestep:.6g}"
    if stamped:
        yield f"{step.moment:.6g}"
    yield _choice(step)
    yield Text(_sum(step.input))
    yield Text("\n".join(map(_update, step.updates)))


def _choice(step: Step) -> str:
    return "open" if step.choice is None else step.choice.text


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
        size = f"{abs(term.coefficient):.4g} ".removeprefix("1 ")
        between = f" {sign} " if text else sign.replace("+", "")
        text += f"{between}{size}{term.buffer}"
    return text


def _depths(program: Program, interface: Interface | None) -> str:
    """The depth of each step as a chart, and what they cost together."""
    choices = [step.choice for step in program.steps if step.choice is not None]
    if len(choices) < len(program.steps):
        return "open: an exit schedule chooses them when it is sampled"
    depths = [choice.blocks for choice in choices]
    full = max(depths) if interface is None else interface.exits[-1]
    sets = dict.fromkeys(choice.engine for choice in choices if choice.engine)
    named = f", on {', '.join(sets)}" if sets else ""
    columns = min(len(depths), _WIDTH)
    chosen = (depths[column * len(depths) // columns] for column in range(columns))
    chart = "".join(_BARS[_level(depth, full)] for depth in chosen)
    if interface is None:
        return f"{chart}  {min(depths)} to {full}, mean {sum(depths) / len(depths):.3g}{named}"
    share = sum(map(interface.cost, choices)) / len(choices)
    return f"{chart}  {share:.0%} of the {'cost' if interface.costs else 'blocks'}{named}"


def _level(depth: int, full: int) -> int:
    """Which of the bars stands for a depth."""
    return max(1, round(depth / full * len(_BARS))) - 1


def _gpu(gpu: Gpu) -> str:
    capability = gpu.compute_capability or "unknown"
    memory = human_bytes(gpu.memory_bytes) if gpu.memory_bytes else "memory of the host"
    driver = f"driver {gpu.driver or 'unknown'}, for CUDA up to {gpu.cuda or 'unknown'}"
    return f"{gpu.name}, compute capability {capability}, {memory}, {driver}"


def _columns(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _yes(answer: Answer) -> Text:
    return Text("yes", style="green") if answer.yes else Text("no", style="red")


def _todo(report: Report) -> Iterator[RenderableType]:
    """Each answer that is no, and each conflict: why, and below it what to do."""
    todo = [
        (f"{conflict.kind}: {conflict.found}", conflict.remedy) for conflict in report.conflicts
    ]
    for backend in report.backends:
        builds, runs = backend.builds, backend.runs
        both = not builds.yes and not runs.yes and runs.reason.startswith(builds.reason)
        if not builds.yes and not both:
            todo.append((f"{backend.name} does not build: {builds.reason}", builds.remedy))
        if not runs.yes:
            verb = "build or run" if both else "run"
            todo.append((f"{backend.name} does not {verb}: {runs.reason}", runs.remedy))
    alike: dict[Answer, list[str]] = {}
    for tool in report.tools:
        if not tool.works.yes:
            alike.setdefault(tool.works, []).append(tool.name)
    todo += [(f"{', '.join(names)}: {no.reason}", no.remedy) for no, names in alike.items()]
    if todo:
        yield Text("what to do", style="italic")
    for reason, remedy in todo:
        yield Text(reason)
        yield Padding(Text(remedy, style="cyan"), (0, 0, 0, 4))


def _inputs(interface: Interface) -> dict[str, str]:
    process, sampling = interface.process, interface.sampling
    conditions = ", ".join(
        f"{name} ({_condition(spec)})" for name, spec in interface.conditions.items()
    )
    return {
        "state": f"float32 {list(interface.state.shape)}{_free(interface)}",
        "conditions": conditions or "none",
        "process": f"{_process(process)}, predicts {process.prediction}",
        "by default": f"{sampling.solver}, {sampling.steps} steps, schedule {sampling.schedule}, "
        f"guidance {sampling.guidance:g}",
    }


def _process(process: Process) -> str:
    if process.family == "diffusion":
        return f"diffusion, T = {process.timesteps}, {process.betas} betas"
    if process.family == "flow":
        return f"flow, T = {process.timesteps}, shift {process.shift:g}"
    return f"EDM, sigma from {process.sigma_min:g} to {process.sigma_max:g}"


def _free(interface: Interface) -> str:
    free = interface.state.resizable
    if free is None:
        return ""
    return f", axes {list(free.axes)} from {free.min} to {free.max} by {free.multiple}"


def _condition(spec: Condition) -> str:
    parts = [f"{spec.dtype} {list(spec.shape)}" if spec.shape else spec.dtype]
    if spec.range:
        parts.append(f"{spec.range[0]:g} to {spec.range[1]:g}")
    if spec.names:
        parts.append(f"{spec.names[0]} to {spec.names[-1]}")
    if spec.default is None:
        parts.append("required")
    else:
        default = spec.default
        parts.append(f"default {default if isinstance(default, str) else f'{default:g}'}")
    if spec.null is not None:
        parts.append(f"null {spec.null:g}")
    return ", ".join(parts)


def _schedules(interface: Interface) -> RenderableType:
    table = Table(title="exit schedules: depth over time", title_justify="left")
    table.add_column("name")
    table.add_column(f"t = 0{'T'.rjust(_WIDTH - 5)}", no_wrap=True)
    table.add_column("share of cost" if interface.costs else "share of blocks", justify="right")
    table.add_column("depths")
    full = interface.exits[-1]
    for name, schedule in interface.schedules.items():
        table.add_row(
            name,
            _chart(schedule, full),
            f"{interface.share(schedule):.0%}",
            " ".join(choice.text for choice in schedule.choices),
        )
    return table


def _chart(schedule: ExitSchedule, full: int) -> Text:
    columns = (schedule.choice_at(column, _WIDTH).blocks for column in range(_WIDTH))
    return Text("".join(_BARS[_level(depth, full)] for depth in columns), style="cyan")


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, Text(fact))  # names may hold what rich takes for markup
    return table


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
