"""What ``export``, ``build`` and ``inspect`` show of bundles and engine sets."""

from __future__ import annotations

from collections.abc import Sequence

from eecompile.programs.interface import Condition, Interface
from eecompile.show.programs import WIDTH, chart, process_words
from eecompile.show.table import (
    Column,
    Facts,
    Line,
    Part,
    Row,
    Table,
    Toned,
    listed,
    percent,
    rough,
    size,
    whole,
)
from eecompile.store.bundle import WEIGHTS, BundleManifest, EngineManifest


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
    rows = [
        Row(
            (
                "all" if len(shared.exits) == len(manifest.exits) else _names(shared.exits),
                shared.nodes,
                shared.bytes,
            )
        )
        for shared in manifest.sharing
    ]
    columns = (
        Column("just these exits"),
        Column("nodes", form=whole),
        Column("weights", form=size),
    )
    sharing = Table("sharing", "sharing", columns, rows)
    facts |= _inputs(manifest.interface)
    return [Facts(facts), exits_table(manifest), sharing, _schedules(manifest.interface)]


def exits_table(manifest: BundleManifest) -> Table:
    """A row per exit: depth, nodes, parameters, its own bytes, worst error."""
    columns = [
        *(Column(heading, form=whole) for heading in ("depth", "nodes", "parameters")),
        *(Column(heading, form=size) for heading in ("weights", "unique")),
        *(Column(heading, form=rough) for heading in ("worst error", "relative")),
    ]
    rows = [
        Row(
            (
                exit_.depth,
                exit_.nodes,
                exit_.parameters,
                exit_.bytes,
                exit_.unique_bytes,
                exit_.worst_error,
                exit_.relative_error,
            )
        )
        for exit_ in manifest.exits
    ]
    return Table("exits", "exits", columns, rows)


def engine_parts(manifest: EngineManifest) -> list[Part]:
    """An engine set: its target, segments, errors and schedules."""
    target = manifest.target
    facts = {
        "engine set": f"{manifest.interface.name} for {target.name}",
        "target": f"{target.backend}, {target.precision}, {target.layout}, batch "
        f"{target.batch.min} to {target.batch.max}",
        "size": _size(manifest),
        "verified": manifest.verified,
        "made by": listed(manifest.versions),
    }
    columns = [
        Column("segment", form=whole),
        Column("exits that need it"),
        Column("nodes", form=whole),
        Column("weights", form=size),
        *(Column(heading, form=whole) for heading in ("reads", "makes")),
    ]
    segments = [
        Row((index, _names(s.exits), s.nodes, s.bytes, len(s.inputs), len(s.outputs)))
        for index, s in enumerate(manifest.segments)
    ]
    errors = (Column(heading, form=rough) for heading in ("worst error", "relative", "mean error"))
    plans = [
        Row((p.depth, _names(p.segments), p.worst_error, p.relative_error, p.mean_error))
        for p in manifest.exits
    ]
    return [
        Facts(facts | _inputs(manifest.interface)),
        *(Line(f"warning: {text}", "warning") for text in manifest.warnings),
        Table("segments", "segments", columns, segments),
        Table(
            "exits", "exits", [Column("depth", form=whole), Column("segments run"), *errors], plans
        ),
        _errors(manifest),
        _schedules(manifest.interface),
    ]


def _errors(manifest: EngineManifest) -> Table:
    """Relative error of each exit at each timestep that was checked, over all batches."""
    columns = [Column("t"), *(Column(f"exit {p.depth}", form=rough) for p in manifest.exits)]
    rows = [
        Row(
            (
                f"{time:g}",
                *(
                    max(point.relative for point in plan.points if point.timestep == time)
                    for plan in manifest.exits
                ),
            )
        )
        for time in sorted({p.timestep for plan in manifest.exits for p in plan.points})
    ]
    return Table("errors", "relative error by timestep", columns, rows)


def planned_parts(
    reasons: Sequence[str], segments: Sequence[tuple[str, Sequence[int], int, bool]]
) -> list[Part]:
    """What a build would do: why, and for each segment (file, exits, bytes, reused) what."""
    if not reasons:
        return [Line("up to date: nothing would be built")]
    headings = ("segment", "exits that need it", "weights", "engine")
    columns = [Column(name, form=size if name == "weights" else None) for name in headings]
    rows = [
        Row((file, _names(exits), count, Toned("kept", "good") if reused else "built"))
        for file, exits, count, reused in segments
    ]
    lines = [Line("would be built, because of"), *(Line(reason, indent=2) for reason in reasons)]
    return [*lines, Table("segments", "segments", columns, rows)]


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
    columns = (
        Column("name", form=None),
        Column(f"t = 0{'T'.rjust(WIDTH - 5)}", form=None),
        Column("share of cost" if interface.costs else "share of blocks", form=percent),
        Column("choices", form=None),
    )
    rows = []
    for name, schedule in interface.schedules.items():
        blocks = [schedule.choice_at(column, WIDTH).blocks for column in range(WIDTH)]
        shown = Toned(chart(blocks, interface.exits[-1]), "hint")
        choices = " ".join(choice.text for choice in schedule.choices)
        rows.append(Row((name, shown, interface.share(schedule), choices)))
    return Table("schedules", "exit schedules: depth over time", columns, rows)
