"""What the command line shows of a comparison."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eecompile.compare.report import Candidate, ExitFigures, Report
from eecompile.report import human_bytes

__all__ = ["comparison_tables"]


def comparison_tables(report: Report) -> RenderableType:
    """Candidates, their exits, whole trajectories, and what was left out."""
    machine = report.machine
    where = ", ".join(
        filter(None, (machine.get("gpus"), machine["cpu"], f"{machine['cores']} cores"))
    )
    parts: list[RenderableType] = [
        Text(f"{report.network} on {where}; errors are to {report.reference}"),
        _candidates(report),
        _exits(report),
    ]
    if report.trajectories:
        parts.append(_trajectories(report))
    return Group(*parts, *_remarks(report))


def _candidates(report: Report) -> Table:
    table = _table("candidates", "name", "backend", "precision", "layout")
    for heading in ("on disk", "memory"):
        table.add_column(heading, justify="right")
    for each in report.candidates:
        table.add_row(
            Text(each.name),
            " ".join([each.backend, *each.versions.values()][:2]),
            each.precision,
            each.layout,
            "" if each.bytes is None else human_bytes(each.bytes),
            "" if each.resident_mib is None else f"{each.resident_mib:.0f} MiB",
        )
    return table


def _exits(report: Report) -> Table:
    """A row an exit, candidate and batch size: side by side what was measured side by side."""
    title = f"exits, one evaluation; relative error to {report.reference}"
    table = _table(title, "exit", "batch")
    table.add_column("candidate", no_wrap=True)
    for heading in ("median ms", "p90 ms", "samples/s", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    depths = sorted({exit_.depth for each in report.candidates for exit_ in each.exits})
    for depth in depths:
        for batch in report.settings.batches:
            for each in report.candidates:
                for exit_ in each.exits:
                    if exit_.depth == depth:
                        _row(table, each, exit_, batch, each.name == report.reference)
        table.add_section()
    return table


def _row(table: Table, each: Candidate, exit_: ExitFigures, batch: int, reference: bool) -> None:
    for latency in exit_.latencies:
        if latency.batch == batch:
            table.add_row(
                str(exit_.depth),
                str(batch),
                Text(each.name),
                f"{latency.median:.4g}",
                f"{latency.p90:.4g}",
                f"{1e3 * batch / latency.median:.4g}",
                Text("reference", style="dim") if reference else _error(exit_),
            )


def _error(exit_: ExitFigures) -> Text:
    worst = exit_.relative
    shown = "" if worst is None else "not finite" if math.isinf(worst) else f"{worst:.1e}"
    return Text(shown, style="green" if exit_.passed else "bold red")


def _trajectories(report: Report) -> Table:
    settings, first = report.settings, report.trajectories[0]
    title = f"trajectories: {settings.solver}, {settings.steps} steps, batch {first.batch}"
    table = _table(title, "candidate", "schedule")
    for heading in ("ms/sample", "speed-up", "ideal", "PSNR to full depth"):
        table.add_column(heading, justify="right")
    for each in report.trajectories:
        table.add_row(
            Text(each.candidate),
            Text(each.schedule),
            f"{1e3 * each.seconds_per_sample:.4g}",
            f"{each.speedup:.2f}",
            f"{each.ideal:.2f}",
            "" if each.psnr is None else f"{each.psnr:.1f} dB",
        )
    return table


def _remarks(report: Report) -> Iterator[Text]:
    """What a reader must not overlook."""
    for each in report.candidates:
        failed = [str(exit_.depth) for exit_ in each.exits if not exit_.passed]
        if failed:
            yield Text(f"{each.name}: not within its tolerance at exits {', '.join(failed)}", "red")
        if each.skipped:
            what = "left out" if not each.exits else "not finished"
            yield Text(f"{each.name}: {what} ({each.skipped})", "yellow")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
