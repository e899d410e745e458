"""A tuning as one page, in the style of a comparison's: nothing that it has to fetch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import plotly.graph_objects as go

from eecompile.compare import page_frame
from eecompile.compare.markup import Column, Html, Row, element, table, whole
from eecompile.tune import plots
from eecompile.tune.findings import findings
from eecompile.tune.report import Front, Kind, Point

__all__ = ["page_of"]

_HERE = Path(page_frame.__file__).parent  # of the style and the script that all pages share
_ORDER: tuple[Kind, ...] = ("full", "found", "ase", "linear", "recipe", "exit", "steps")


def page_of(front: Front) -> str:
    """``report.html``."""
    figures = page_frame.Figures()
    used = {point.kind for point in front.points}
    keys = [_key(index, kind) for index, kind in enumerate(plots.KINDS) if kind in used]
    body = [
        element("div", *keys, class_="keys", role="group", aria_label="Kinds to show"),
        _front(front, figures),
        _schedules(front, figures),
        _measured(front, figures),
        _section("All programs", [_points(front)]),
        _section("Against what needs no tuning", [_comparisons(front)]),
        _section("What a step takes", [_latencies(front)]),
        _closing(front),
        element("script", Html(figures.json()), type="application/json", id="figures"),
        element("script", page_frame.library(), type="text/plain", id="plotly"),
        element("script", Html((_HERE / "page.js").read_text("utf-8"))),
    ]
    return page_frame.document([_head(front), *_opening(front), *body])


def _section(heading: str, content: Sequence[Html]) -> Html:
    return element("section", element("h2", heading), *content)


def _head(front: Front) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=page_frame.POLICY),
        element("meta", name="viewport", content="width=device-width"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{front.network}: exit schedules by eecompile"),
        element("style", Html((_HERE / "page.css").read_text("utf-8"))),
    )


def _opening(front: Front) -> Iterator[Html]:
    machine = " · ".join(f"{name} {fact}" for name, fact in front.machine.items())
    yield element(
        "header",
        element("p", "eecompile tune", class_="over"),
        element("h1", front.network),
        element("p", machine, class_="machine"),
    )
    sentences = [element("li", line) for line in findings(front.points, front.comparisons)]
    if sentences:
        yield _section("In short", [element("ul", *sentences)])
    if front.warnings:
        yield element(
            "section",
            element("h2", "Before you rely on it"),
            element("ul", *(element("li", line) for line in front.warnings)),
            class_="skipped",
        )
    yield _section("How it was found", [_settings(front)])


def _settings(front: Front) -> Html:
    settings = front.settings
    allowed = [
        "exits of " + ", ".join(front.engines),
        *(["the previous output"] if settings.reuse else []),
        *(["depth never falling as t goes to 0"] if settings.monotone else []),
    ]
    sampling = f"{settings.solver}, {settings.steps} steps, guidance {settings.guidance:g}"
    if settings.guidance != 1 and settings.guidance_interval:
        low, high = settings.guidance_interval
        sampling += f" between t = {low:g} and {high:g}"
    if settings.shape:
        sampling += ", samples of " + "x".join(map(str, settings.shape))
    facts = {
        "sampling": sampling,
        "choices": "; ".join(allowed),
        "chosen by": f"{settings.seeds} samples of seed {settings.seed}",
        "reported on": f"{settings.held_out} further samples, in batches of {settings.batch}",
        "tuning": f"{front.seconds:.0f} s",
        "eecompile": front.eecompile,
    }
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items()),
    )


def _key(index: int, kind: Kind) -> Html:
    """A button that shows or hides the points of a kind."""
    name, colour, _ = plots.KINDS[kind]
    swatch = element(
        "span", class_="swatch", style=f"background-color: {colour}", aria_hidden="true"
    )
    return element(
        "button", swatch, element("span", name), type="button", aria_pressed="true", data_key=index
    )


def _front(front: Front, figures: page_frame.Figures) -> Html:
    words = (
        "Lower and further left is better. Time is of whole samplings; distance is that of the "
        "samples to those at full depth from the same seeds, on samples that no schedule was "
        "chosen by, with 95 % intervals."
    )
    plot = figures.place(plots.front_plot(front), "Distance against time", wide=True)
    return _plots("The front", words, [plot])


def _schedules(front: Front, figures: page_frame.Figures) -> Html:
    words = (
        "A bar a step, as high as the exit that runs; no bar where the previous output is used "
        "again. Colours tell engine sets apart."
    )
    figure = plots.depths(front)
    if figure is None:
        nothing = element("p", "No schedule but full depth fits.", class_="words")
        return _section("Found schedules", [nothing])
    placed = figures.place(figure, "Depth at each step, by schedule", wide=True)
    return _plots("Found schedules", words, [placed])


def _measured(front: Front, figures: page_frame.Figures) -> Html:
    words = (
        "Left: what taking a choice at one step alone does to the samples, measured at some steps "
        "and interpolated. Right: the sum of the steps' measured times against whole samplings; "
        "on the dotted line they agree."
    )
    plotted: list[tuple[go.Figure | None, str]] = [
        (plots.errors(front), "What each choice does to the samples, by t"),
        (plots.predictions(front), "Time, predicted and measured"),
    ]
    placed = [figures.place(figure, caption) for figure, caption in plotted if figure is not None]
    return _plots("What was measured", words, placed)


def _plots(heading: str, words: str, placed: Sequence[Html]) -> Html:
    unseen = element("p", "The plots need JavaScript; the tables below hold the same figures.")
    content = [
        element("p", words, class_="words"),
        element("noscript", unseen),
        element("div", *placed, class_="plots"),
    ]
    return _section(heading, content)


def _points(front: Front) -> Html:
    columns = [
        Column("schedule", form=None),
        Column("kind", form=None),
        Column("steps", "", whole),
        Column("time", "of full depth"),
        Column("predicted", "of full depth"),
        Column("ideal", "of full depth"),
        Column("time", "ms a sample"),
        Column("distance", _unit(front)),
        Column("from", "95 %"),
        Column("to", "95 %"),
        Column("PSNR", "dB"),
        Column("when chosen", "distance"),
        Column("choices", "per step", form=None, long=True),
    ]
    points = sorted(front.points, key=lambda p: (_ORDER.index(p.kind), -p.predicted))
    return table("points", "Programs, on the held-out samples", columns, list(map(_row, points)))


def _unit(front: Front) -> str:
    return "of the data's range" if front.unit == "range" else "of the deviation"


def _row(point: Point) -> Row:
    apart = point.distance > 0
    kind = "full depth" if point.kind == "full" else plots.KINDS[point.kind][0]
    attributes: dict[str, object] = {}
    if point.kind != "full":
        attributes["data_candidate"] = list(plots.KINDS).index(point.kind)
    return Row(
        (
            point.name,
            kind,
            point.steps,
            point.time,
            point.predicted,
            point.ideal,
            1e3 * point.seconds_per_sample,
            point.distance if apart else None,
            point.interval[0] if apart else None,
            point.interval[1] if apart else None,
            point.psnr,
            point.chosen_by,
            _choices(point),
        ),
        attributes,
    )


def _choices(point: Point) -> str:
    """Runs of equal steps: ``12, 9 x 3, again, 6@cpu-bf16``."""
    runs = ((choice.text, len(list(run))) for choice, run in groupby(point.choices))
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in runs)


def _comparisons(front: Front) -> Html:
    if not front.comparisons:
        return element("p", "No found schedule takes as little time as these.", class_="words")
    columns = [
        Column("baseline", form=None),
        Column("found", form=None),
        Column("time", "of the baseline's"),
        Column("distance", "of the baseline's"),
        Column("from", "95 %"),
        Column("to", "95 %"),
        Column("time at its distance", "of the baseline's"),
    ]
    rows = [
        Row((c.baseline, c.found, c.time, c.distance, *c.interval, c.time_at_distance))
        for c in front.comparisons
    ]
    return table("comparisons", "The found schedule that takes no longer", columns, rows)


def _latencies(front: Front) -> Html:
    columns = [
        Column("choice", form=None),
        Column("median", "ms"),
        Column("p10", "ms"),
        Column("p90", "ms"),
        Column("rounds", "", whole),
    ]
    rows = []
    for each in front.latencies:
        name = each.choice.text + (", guided" if each.guided else "")
        rows.append(Row((name, each.median, each.p10, each.p90, each.rounds)))
    caption = f"One step at batch {front.settings.batch}, the solver's arithmetic included"
    return table("latencies", caption, columns, rows)


def _closing(front: Front) -> Html:
    words = f"Written by eecompile {front.eecompile}. Plots: plotly.js (MIT licence)."
    return element("footer", element("p", words))
