"""What ``export``, ``build`` and ``inspect`` show of bundles and engine sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from eecompile.programs.interface import Condition, Interface
from eecompile.programs.schedule import ExitSchedule
from eecompile.show.programs import WIDTH, chart, process_words
from eecompile.show.table import (
    Column,
    FactList,
    Line,
    Part,
    Table,
    Toned,
    listed,
    percent,
    rough,
    size,
    whole,
    words,
)
from eecompile.store.bundle import WEIGHTS
from eecompile.store.manifest import (
    BundleManifest,
    EngineManifest,
    ExitPlan,
    OperatorError,
    Quantisation,
)
from eecompile.store.target import Target

_MOST_OPERATORS = 20  # that are shown; the manifest has all


def bundle_parts(manifest: BundleManifest) -> list[Part]:
    """A bundle: where it comes from, its exits, what they share, and its schedules."""
    apart = sum(exit_.bytes for exit_ in manifest.exits)
    weights = sum(record.bytes for record in manifest.files if record.name == WEIGHTS)
    facts = {
        "bundle": manifest.interface.name,
        "size": _size(manifest),
        "shared": f"weights of all exits {size(weights)}; stored apart {size(apart)}",
        "verified": f"timesteps {list(manifest.checked_timesteps)}, "
        f"batches {list(manifest.checked_batches)}, against {manifest.reference}",
        "made by": listed(manifest.versions),
    }
    columns = [
        Column("just these exits", lambda each: _these(each.exits, manifest)),
        Column("nodes", lambda each: each.nodes, form=whole),
        Column("weights", lambda each: each.bytes, form=size),
    ]
    sharing = Table("sharing", "sharing", columns, manifest.sharing)
    facts |= _inputs(manifest.interface) | {"cuts": _cuts(manifest.interface)}
    return [
        FactList(facts),
        exits_table(manifest),
        sharing,
        *companions_table(manifest),
        *_spans(manifest),
        _schedules(manifest.interface),
    ]


def _these(exits: Sequence[int], manifest: BundleManifest) -> str:
    return "all" if len(exits) == len(manifest.exits) else _names(exits)


def exits_table(manifest: BundleManifest) -> Table:
    """A row per exit: depth, nodes, parameters, its own bytes, worst error."""
    columns = [
        Column("depth", lambda each: each.depth, form=whole),
        Column("nodes", lambda each: each.nodes, form=whole),
        Column("parameters", lambda each: each.parameters, form=whole),
        Column("weights", lambda each: each.bytes, form=size),
        Column("unique", lambda each: each.unique_bytes, form=size),
        Column("worst error", lambda each: each.worst_error, form=rough),
        Column("relative", lambda each: each.relative_error, form=rough),
    ]
    return Table("exits", "exits", columns, manifest.exits)


def companions_table(manifest: BundleManifest | EngineManifest) -> Iterator[Table]:
    """A row per encoder, and one for the decoder, if there are any."""
    columns = [
        words("companion", lambda each: each.name),
        words("reads", lambda each: ", ".join(each.inputs)),
        words("gives", lambda each: ", ".join(each.outputs)),
        Column("parameters", lambda each: each.parameters, form=whole),
        Column("weights", lambda each: each.bytes, form=size),
        Column("worst error", lambda each: each.worst_error, form=rough),
        Column("relative", lambda each: each.relative_error, form=rough),
    ]
    if manifest.companions:
        title = "companions, which run once a sampling"
        yield Table("companions", title, columns, manifest.companions)


def engine_parts(manifest: EngineManifest) -> list[Part]:
    """An engine set: its target, segments, errors and schedules."""
    target = manifest.target
    facts = {
        "engine set": f"{manifest.interface.name} for {target.name}",
        "target": f"{target.backend}, {target.numbers}, {target.layout}, batch "
        f"{target.batch.min} to {target.batch.max}",
        "size": _size(manifest),
        "verified": manifest.verified,
        "made by": listed(manifest.versions),
    }
    if manifest.quantisation is not None:
        facts |= _quantised(manifest.quantisation)
    segments = [
        Column("segment", lambda pair: pair[0], form=whole),
        Column("exits that need it", lambda pair: _names(pair[1].exits)),
        Column("nodes", lambda pair: pair[1].nodes, form=whole),
        Column("weights", lambda pair: pair[1].bytes, form=size),
        Column("reads", lambda pair: len(pair[1].inputs), form=whole),
        Column("makes", lambda pair: len(pair[1].outputs), form=whole),
    ]
    exits = [
        Column("depth", lambda plan: plan.depth, form=whole),
        Column("segments run", lambda plan: _names(plan.segments)),
        Column("worst error", lambda plan: plan.worst_error, form=rough),
        Column("relative", lambda plan: plan.relative_error, form=rough),
        Column("mean error", lambda plan: plan.mean_error, form=rough),
    ]
    return [
        FactList(facts | _inputs(manifest.interface) | {"cuts": _cuts(manifest.interface, target)}),
        *(Line(f"warning: {text}", "warning") for text in manifest.warnings),
        Table("segments", "segments", segments, list(enumerate(manifest.segments))),
        Table("exits", "exits", exits, manifest.exits),
        _errors(manifest),
        *companions_table(manifest),
        *_sensitivity(manifest.quantisation),
        *_spans(manifest),
        _schedules(manifest.interface),
    ]


def _errors(manifest: EngineManifest) -> Table:
    """Relative error of each exit at each timestep that was checked, over all batches."""

    def worst(plan: ExitPlan) -> Callable[[float], float | None]:
        return lambda time: max(
            (p.relative for p in plan.points if p.timestep == time), default=None
        )

    exits = [Column(f"exit {p.depth}", worst(p), form=rough) for p in manifest.exits]
    times = sorted({point.timestep for plan in manifest.exits for point in plan.points})
    columns = [Column("t", lambda time: f"{time:g}"), *exits]
    return Table("errors", "relative error by timestep", columns, times)


def _quantised(found: Quantisation) -> dict[str, str]:
    """What is quantised, what is not, and with what the ranges were found."""
    where = f", for {found.instructions}" if found.instructions else ""
    kept = [operator.name for operator in found.operators if operator.kept]
    facts = {
        "quantised": f"{found.kind} ({found.scheme}{where}), {found.share:.0%} of the "
        f"multiplications with weights, {len(found.operators) - len(kept)} of "
        f"{len(found.operators)} operators",
        "calibration": f"{found.samples} samples, {found.rows} evaluations at {len(found.steps)} "
        f"timesteps from {found.steps[0]:g} to {found.steps[-1]:g}",
    }
    if kept:
        facts["kept"] = ", ".join(kept)
    if found.refused:
        facts["not quantised"] = ", ".join(found.refused)
    return facts


def _sensitivity(found: Quantisation | None) -> Iterator[Table]:
    """Error of each operator alone, by timestep, the largest first; none where not measured."""
    if found is None or not found.timesteps:
        return

    def error(index: int) -> Callable[[OperatorError], float]:
        return lambda operator: operator.errors[index]

    columns = [
        words("operator", lambda each: each.name),
        words("kind", lambda each: each.kind),
        Column("of the cost", lambda each: each.cost, form=percent),
        words("", lambda each: Toned("kept", "good") if each.kept else "quantised"),
        *(
            Column(f"t = {time:g}", error(index), form=rough)
            for index, time in enumerate(found.timesteps)
        ),
    ]
    ordered = found.most_sensitive(_MOST_OPERATORS)
    title = "operators by what each, quantised alone, adds: relative error by timestep"
    yield Table("sensitivity", title, columns, ordered)


def _cuts(interface: Interface, target: Target | None = None) -> str:
    """The block boundaries at which spans may begin and end, or why there are none."""
    if not interface.cuts:
        return "none, so no spans"
    cuts = _names(interface.cuts)
    if target is not None and target.layout != "chained":
        return f"{cuts}; no spans with layout {target.layout}"
    return cuts


def _spans(manifest: BundleManifest | EngineManifest) -> Iterator[Table]:
    """Which blocks can be skipped, by which exits, and what forecasting them takes."""
    interface = manifest.interface
    columns = [
        words("span", lambda span: f"{span.start}-{span.stop}"),
        words("exits", lambda span: _names([e for e in interface.exits if e >= span.stop])),
        Column("of all blocks", lambda s: interface.spans[s.start, s.stop], form=percent),
        Column("tensors", lambda span: len(span.tensors), form=whole),
        Column("kept", lambda span: span.bytes, form=size),
    ]
    if isinstance(manifest, EngineManifest):
        columns += [
            Column("worst error", lambda span: span.worst_error, form=rough, detail=True),
            Column("relative", lambda span: span.relative_error, form=rough),
        ]
    if manifest.spans:
        title = "spans that exits can skip; memory for each step and sample that is kept of them"
        yield Table("spans", title, columns, manifest.spans)


def planned_parts(
    reasons: Sequence[str], segments: Sequence[tuple[str, Sequence[int], int, bool]]
) -> list[Part]:
    """What a build would do: why, and for each segment (file, exits, bytes, reused) what."""
    if not reasons:
        return [Line("up to date: nothing would be built")]
    columns = [
        words("segment", lambda each: each[0]),
        words("exits that need it", lambda each: _names(each[1])),
        Column("weights", lambda each: each[2], form=size),
        words("engine", lambda each: Toned("kept", "good") if each[3] else "built"),
    ]
    lines = [Line("would be built, because of"), *(Line(reason, indent=2) for reason in reasons)]
    return [*lines, Table("segments", "segments", columns, segments)]


def _size(manifest: BundleManifest | EngineManifest) -> str:
    return f"{size(sum(r.bytes for r in manifest.files))} in {len(manifest.files)} files"


def _names(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


def _inputs(interface: Interface) -> dict[str, str]:
    """What the network takes, and how it is sampled by default."""
    sampling, free = interface.sampling, interface.state.resizable
    shape = f"float32 {list(interface.state.shape)}"
    if free is not None:
        shape += f", axes {list(free.axes)} from {free.min} to {free.max} by {free.multiple}"
    conditions = [f"{name} ({_condition(spec)})" for name, spec in interface.conditions.items()]
    return {
        "state": shape,
        "conditions": ", ".join(conditions) or "none",
        "process": process_words(interface.process),
        "by default": f"{sampling.solver}, {sampling.steps} steps, schedule {sampling.schedule}, "
        f"guidance {sampling.guidance:g}",
    }


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


def _schedules(interface: Interface) -> Table:
    share = "share of cost" if interface.costs else "share of blocks"
    columns = [
        words("name", lambda each: each[0]),
        words(f"t = 0{'T'.rjust(WIDTH - 5)}", lambda each: _chart(each[1], interface), whole=True),
        Column(share, lambda each: interface.share(each[1]), form=percent),
        words("choices", lambda each: " ".join(choice.text for choice in each[1].choices)),
    ]
    schedules = list(interface.schedules.items())
    return Table("schedules", "exit schedules: depth over time", columns, schedules)


def _chart(schedule: ExitSchedule, interface: Interface) -> Toned:
    blocks = [schedule.choice_at(column, WIDTH).blocks for column in range(WIDTH)]
    return Toned(chart(blocks, interface.exits[-1]), "hint")
