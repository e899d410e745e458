"""A comparison as a page: plots, tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eecompile.compare import plots
from eecompile.compare.findings import findings
from eecompile.compare.report import Comparison
from eecompile.compare.tables import (
    candidates_table,
    exits_table,
    left_out,
    trajectories_table,
)
from eecompile.show.page import Page, Plot, Section, page_text
from eecompile.show.plots import Mark
from eecompile.show.table import FactList


def page_of(report: Comparison, images: Mapping[str, bytes]) -> str:
    """``report.html``; ``images`` are PNG files by label, in the order to show.

    Raises:
        UsageError: an image is no PNG file.
    """
    looks = plots.looks_of(report)
    same = (
        "The same seeds in the same places of each picture. The lower row of a schedule is its "
        "difference to the same candidate at full depth, black for none."
    )
    return page_text(
        Page(
            command="compare",
            network=report.network,
            what="comparison",
            machine=report.machine,
            version=report.eecompile,
            opening=list(_opening(report)),
            role="Candidates",
            keys=[one.name for one in report.candidates if one.exits],
            marks=looks,
            sections=[
                _latency(report, looks),
                _errors(report, looks),
                *_operators(report, looks),
                _schedules(report, looks),
                Section("Samples", same if images else "No samples were drawn.", pictures=images),
                Section("All exits", parts=[exits_table(report)]),
                Section("All trajectories", parts=[trajectories_table(report)]),
            ],
        )
    )


def _opening(report: Comparison) -> Iterator[Section]:
    """Findings, what was not compared, and what was and how."""
    if sentences := list(findings(report)):
        yield Section("In short", lines=sentences)
    if skipped := list(left_out(report)):
        begun = any(candidate.exits for candidate in report.candidates if candidate.skipped)
        heading = "Not compared, or not to the end" if begun else "Not compared"
        yield Section(heading, lines=skipped, warns=True)
    yield Section("What was compared", parts=[candidates_table(report), _settings(report)])


def _settings(report: Comparison) -> FactList:
    settings = report.settings
    rounds = f"{settings.rounds} rounds" if settings.rounds else "as many rounds as time allowed,"
    sampled = f"{settings.solver}, {settings.steps} steps, seed {settings.seed}"
    if settings.guidance != 1:
        sampled += f", guidance {settings.guidance:g}"
    return FactList(
        {
            "latency": f"median of {rounds} in turn, after warm-up; batch "
            f"{', '.join(map(str, settings.batches)) or 'none'}",
            "error": f"to {report.reference}, at timesteps "
            f"{', '.join(f'{time:g}' for time in settings.timesteps) or 'none'}",
            "tolerance": f"a target's own; else absolute {settings.absolute:g}, "
            f"relative {settings.relative:g}",
            "trajectories": sampled,
            "bundle": report.bundle_digest,
            "eecompile": report.eecompile,
        }
    )


def _latency(report: Comparison, looks: Mapping[str, Mark]) -> Section:
    batches = {row.batch for one in report.candidates for e in one.exits for row in e.latencies}
    placed = [
        Plot(figure, f"Latency by exit and candidate, batch {batch}")
        for batch in sorted(batches)
        if (figure := plots.latency(report, batch, looks))
    ]
    words = "One evaluation of the network, median; whiskers reach up to the 90th percentile."
    return _plotted("Latency", words, placed, "No latencies were measured.")


def _errors(report: Comparison, looks: Mapping[str, Mark]) -> Section:
    placed = [
        Plot(figure, f"Error by timestep and exit: {each.name}", key=each.name)
        for each in report.candidates
        if (figure := plots.errors(report, each, looks[each.name]))
    ]
    words = (
        f"Largest difference to {report.reference} over its largest output, the worst of the "
        "batches; one scale for all."
    )
    same = [each.name for each in report.candidates if plots.is_exact(each)]
    equal = f"No difference at all to {report.reference}: {', '.join(same)}." if same else ""
    without = equal or "No errors were measured."
    return _plotted("Error", f"{words} {equal}".rstrip(), placed, without)


def _operators(report: Comparison, looks: Mapping[str, Mark]) -> Iterator[Section]:
    """What operators add when each is quantised alone; nothing where that was not measured."""
    placed = [
        Plot(figure, f"Sensitivity of operators: {each.name}", key=each.name, wide=True)
        for each in report.candidates
        if (figure := plots.operators(each, looks[each.name]))
    ]
    words = (
        "Relative error of the worst exit where this operator alone is quantised, measured when "
        "the engine set was built. Those that are kept stay in the target's precision."
    )
    if placed:
        yield Section("Sensitivity", words, plots=placed)


def _schedules(report: Comparison, looks: Mapping[str, Mark]) -> Section:
    placed = []
    if chosen := plots.choices(report):
        placed.append(Plot(chosen, "Depth over time, by exit schedule"))
    for batch in sorted({row.batch for row in report.trajectories}):
        rows = [row for row in report.trajectories if row.batch == batch]
        if figure := plots.speed_ups(rows, looks):
            caption = f"Speed-up, measured and ideal (upright lines), batch {batch}"
            placed.append(Plot(figure, caption))
        if figure := plots.speed_and_distance(rows, looks):
            caption = f"Speed against distance to full depth, batch {batch}"
            placed.append(Plot(figure, caption, wide=True))
    words = (
        "Whole trajectories. Each candidate is compared with itself at full depth, from the same "
        "seeds; the ideal is what the schedule's share of cost promises."
    )
    return _plotted("Exit schedules", words, placed, "No trajectories were sampled.")


def _plotted(heading: str, words: str, placed: Sequence[Plot], without: str) -> Section:
    return Section(heading, words if placed else without, plots=placed)
