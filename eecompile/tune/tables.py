"""What the command line shows of a tuning."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from eecompile.tune.findings import findings
from eecompile.tune.report import Front, Point

__all__ = ["front_tables"]


def front_tables(front: Front) -> RenderableType:
    """What choices cost, the front among the baselines, and what came out."""
    settings, facts = front.settings, front.machine
    where = ", ".join(filter(None, (facts.get("gpus"), facts.get("cpu"))))
    words = (
        f"{front.network} on {where}: {settings.solver}, {settings.steps} steps, batch "
        f"{settings.batch}; times and distances are to full depth"
    )
    return Group(Text(words), _choices(front), _points(front), *_remarks(front))


def _choices(front: Front) -> Table:
    table = _table("what a step takes", "choice")
    for heading in ("ms", "p10 to p90"):
        table.add_column(heading, justify="right")
    for each in front.latencies:
        table.add_row(
            Text(each.choice.text + (", guided" if each.guided else "")),
            f"{each.median:.4g}",
            f"{each.p10:.3g} to {each.p90:.3g}",
        )
    return table


def _points(front: Front) -> Table:
    unit = "of the data's range" if front.unit == "range" else "of the samples' deviation"
    title = f"{front.settings.held_out} held-out samples; distance in 1/1000 {unit}"
    table = _table(title)
    table.add_column("schedule", no_wrap=True)
    for heading in ("time", "predicted", "ideal", "distance", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for kinds in (("full", "found"), ("ase", "linear", "recipe"), ("exit",), ("steps",)):
        table.add_section()
        for point in sorted(front.points, key=lambda point: -point.predicted):
            if point.kind in kinds:
                table.add_row(*_cells(point), style="bold" if point.kind == "found" else "")
    return table


def _cells(point: Point) -> Iterator[Text]:
    low, high = (1e3 * bound for bound in point.interval)
    for cell in (
        point.name,
        f"{point.time:.3f}",
        f"{point.predicted:.3f}",
        f"{point.ideal:.3f}",
        f"{1e3 * point.distance:.3g}",
        f"{low:.3g} to {high:.3g}" if point.distance else "",
    ):
        yield Text(cell)


def _remarks(front: Front) -> Iterator[Text]:
    for sentence in findings(front.points, front.comparisons):
        yield Text(sentence)
    for warning in front.warnings:
        yield Text(f"note: {warning}", "yellow")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table
