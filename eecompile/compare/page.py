"""A comparison as one page: plots, tables and pictures, and nothing that it has to fetch."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from eecompile.compare import heat_map, plots
from eecompile.compare.findings import findings
from eecompile.compare.markup import Html, element
from eecompile.compare.page_frame import POLICY, Figures, document, library
from eecompile.compare.page_tables import (
    candidates_table,
    exits_table,
    swatch,
    trajectories_table,
)
from eecompile.compare.plots import Mark
from eecompile.compare.report import Candidate, Report
from eecompile.errors import UsageError
from eecompile.store.files import written

__all__ = ["LIMIT", "write_page"]

LIMIT = 6_000_000  # bytes of a page; pictures beyond that are left out, and named
_HERE = Path(__file__).parent


def write_page(report: Report, images: Mapping[str, bytes], path: Path) -> None:
    """Write ``report.html``, whole or not at all.

    Args:
        report: what to show.
        images: PNG files by label, sampled from the same seeds, in the order to show. Those
            with which the page would be larger than :data:`LIMIT` are left out and named.
        path: the page.

    Raises:
        UsageError: an image is no PNG file.
    """
    page = _page(report, images)
    with written(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _page(report: Report, images: Mapping[str, bytes]) -> str:
    looks = plots.marks(report)
    figures = Figures()
    sections = [
        _section("Latency", _latency(report, looks, figures)),
        _section("Error", _errors(report, looks, figures)),
        _section("Exit schedules", _schedules(report, looks, figures)),
    ]
    tables = [
        _section("All exits", [exits_table(report, looks)]),
        _section("All trajectories", [trajectories_table(report, looks)]),
    ]
    around = [_head(report), *_opening(report, looks), *sections, *tables, _closing(report)]
    scripts = [
        element("script", Html(figures.json()), type="application/json", id="figures"),
        element("script", library(), type="text/plain", id="plotly"),
        element("script", Html((_HERE / "page.js").read_text("utf-8"))),
    ]
    size = len(document(around + scripts).encode())
    around.insert(-3, _section("Samples", _pictures(images, LIMIT - size)))  # before the tables
    return document(around + scripts)


def _head(report: Report) -> Html:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{report.network}: comparison by eecompile"),
        element("style", Html((_HERE / "page.css").read_text("utf-8"))),
    )


def _section(heading: str, content: Sequence[Html]) -> Html:
    return element("section", element("h2", heading), *content)


def _opening(report: Report, looks: Mapping[str, Mark]) -> Iterator[Html]:
    """Title, findings, what was not compared, what was and how, and the plots' key."""
    machine = " · ".join(f"{name} {fact}" for name, fact in report.machine.items())
    yield element(
        "header",
        element("p", "eecompile compare", class_="over"),
        element("h1", report.network),
        element("p", machine, class_="machine"),
    )
    sentences = list(findings(report))
    if sentences:
        yield _section("In short", [element("ul", *(element("li", line) for line in sentences))])
    skipped = [candidate for candidate in report.candidates if candidate.skipped]
    if skipped:
        begun = any(candidate.exits for candidate in skipped)
        reasons = [
            element("li", element("strong", candidate.name), f": {candidate.skipped}")
            for candidate in skipped
        ]
        yield element(
            "section",
            element("h2", "Not compared, or not to the end" if begun else "Not compared"),
            element("ul", *reasons),
            class_="skipped",
        )
    yield _section("What was compared", [candidates_table(report, looks), _settings(report)])
    shown = [candidate for candidate in report.candidates if candidate.exits]
    if shown:
        keys = [_key(candidate, looks[candidate.name]) for candidate in shown]
        yield element("div", *keys, class_="keys", role="group", aria_label="Candidates to show")


def _key(candidate: Candidate, mark: Mark) -> Html:
    """A button that shows or hides a candidate."""
    return element(
        "button",
        swatch(mark),
        element("span", candidate.name),
        type="button",
        aria_pressed="true",
        data_key=mark.index,
        title=candidate.name,
    )


def _settings(report: Report) -> Html:
    settings = report.settings
    rounds = f"{settings.rounds} rounds" if settings.rounds else "as many rounds as time allowed,"
    sampled = f"{settings.solver}, {settings.steps} steps, seed {settings.seed}"
    if settings.guidance != 1:
        sampled += f", guidance {settings.guidance:g}"
    facts = {
        "latency": f"median of {rounds} in turn, after warm-up; batch {_listed(settings.batches)}",
        "error": f"to {report.reference}, at timesteps "
        f"{_listed([f'{time:g}' for time in settings.timesteps])}",
        "tolerance": f"a target's own; else absolute {settings.absolute:g}, "
        f"relative {settings.relative:g}",
        "trajectories": sampled,
        "bundle": report.bundle_digest,
        "eecompile": report.eecompile,
    }
    return element(
        "dl",
        *(element("div", element("dt", name), element("dd", fact)) for name, fact in facts.items()),
    )


def _listed(items: Sequence[object]) -> str:
    return ", ".join(map(str, items)) or "none"


def _latency(report: Report, looks: Mapping[str, Mark], figures: Figures) -> list[Html]:
    batches = sorted(
        {row.batch for one in report.candidates for exit_ in one.exits for row in exit_.latencies}
    )
    placed = []
    for batch in batches:
        figure = plots.latency(report, batch, looks)
        if figure is not None:
            caption = f"Latency by exit and candidate, batch {batch}"
            placed.append(figures.place(figure, caption))
    return _plots(
        placed,
        "One evaluation of the network, median; whiskers reach up to the 90th percentile.",
        "No latencies were measured.",
    )


def _errors(report: Report, looks: Mapping[str, Mark], figures: Figures) -> list[Html]:
    placed = []
    for candidate in report.candidates:
        mark = looks[candidate.name]
        figure = heat_map.errors(report, candidate, mark)
        if figure is not None:
            caption = f"Error by timestep and exit: {candidate.name}"
            placed.append(figures.place(figure, caption, candidate=mark.index))
    return _plots(
        placed,
        f"Largest difference to {report.reference} over its largest output, the worst of the "
        "batches; one scale for all.",
        "No errors were measured.",
    )


def _schedules(report: Report, looks: Mapping[str, Mark], figures: Figures) -> list[Html]:
    depths = plots.depths(report)
    placed = []
    if depths is not None:
        placed.append(figures.place(depths, "Depth over time, by exit schedule"))
    batches = sorted({row.batch for row in report.trajectories})
    for batch in batches:
        rows = [row for row in report.trajectories if row.batch == batch]
        speedups = plots.speedups(rows, looks)
        if speedups is not None:
            caption = f"Speed-up, measured and ideal (upright lines), batch {batch}"
            placed.append(figures.place(speedups, caption))
        distance = plots.speed_and_distance(rows, looks)
        if distance is not None:
            caption = f"Speed against distance to full depth, batch {batch}"
            placed.append(figures.place(distance, caption, wide=True))
    return _plots(
        placed,
        "Whole trajectories. Each candidate is compared with itself at full depth, from the same "
        "seeds; the ideal is what the schedule's share of cost promises.",
        "No trajectories were sampled.",
    )


def _plots(placed: Sequence[Html], words: str, without: str) -> list[Html]:
    if not placed:
        return [element("p", without, class_="words")]
    unseen = element("p", "The plots need JavaScript; the tables below hold the same figures.")
    return [
        element("p", words, class_="words"),
        element("noscript", unseen),
        element("div", *placed, class_="plots"),
    ]


def _pictures(images: Mapping[str, bytes], room: int) -> list[Html]:
    """As many pictures as there is room for, in bytes; and the names of the others."""
    placed, left = [], []
    for label, png in images.items():
        picture = _picture(label, png)
        if len(picture.encode()) + 1000 > room:  # some for the words around them
            left.append(label)
            continue
        room -= len(picture.encode()) + len(label.encode())
        placed.append(picture)
    if not images:
        return [element("p", "No samples were drawn.", class_="words")]
    words = "The same seeds in the same places of each picture."
    if left:
        words += f" Left out, as the page would be too large: {', '.join(left)}."
    return [element("p", words, class_="words"), element("div", *placed, class_="pictures")]


def _picture(label: str, png: bytes) -> Html:
    if png[:8] != b"\x89PNG\r\n\x1a\n" or len(png) < 24:
        raise UsageError(
            found=f"an image {label!r} that is no PNG file",
            expected="PNG files",
            remedy="encode it as PNG",
        )
    width, height = struct.unpack(">II", png[16:24])
    image = element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(png).decode()}",
        alt=f"Samples: {label}",
        width=width,
        height=height,
    )
    return element("figure", element("figcaption", label), image)


def _closing(report: Report) -> Html:
    words = f"Written by eecompile {report.eecompile}. Plots: plotly.js (MIT licence)."
    return element("footer", element("p", words))
