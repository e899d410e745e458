"""The page of a tuning, read as a file and looked at in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from eecompile.programs.choice import Choice, Exit, Forecast, Span
from eecompile.programs.schedule import ExitSchedule
from eecompile.tune.latency import StepLatency
from eecompile.tune.page import page_of
from eecompile.tune.report import BaselineComparison, Front, FrontPoint, Kind, TuningSettings
from tests.compare.chromium import Browser, chromium

MARKUP = "<b>bold</b> & <img src=x onerror=\"document.title='ran'\"> %{x} </script>"
MOMENTS = tuple(float(t) for t in range(950, 0, -100))


def point(name: str, kind: Kind, depths: tuple[int, ...], distance: float) -> FrontPoint:
    share = sum(depths) / 120
    mixed = kind == "found" and len(depths) == 10
    engines = ("", "cpu-bf16") * 5 if mixed else ("",) * len(depths)
    choices: list[Choice] = [
        Exit(depth, engine) if depth else Forecast()
        for depth, engine in zip(depths, engines, strict=True)
    ]
    return FrontPoint(
        name=name,
        kind=kind,
        steps=len(depths),
        schedule=ExitSchedule.from_slices([depth or 6 for depth in reversed(depths)]),
        choices=tuple(choices),
        budget=0.7 if kind == "found" else None,
        predicted_share=share,
        time_share=1.03 * share,
        spread=(share, 1.1 * share),
        ideal_share=share,
        seconds_per_sample=share / 9,
        distance=distance,
        interval=(0.9 * distance, 1.15 * distance),
        psnr=41.5 if distance else None,
        chosen_by=distance if kind == "found" else None,
    )


def sample_front(network: str = "fashion-dit") -> Front:
    points = (
        point("full", "full", (12,) * 10, 0.0),
        point("budget-80", "found", (12, 9) * 5, 0.004),
        point("budget-60", "found", (12, 0, 9, 0, 9, 6, 6, 12, 9, 9), 0.011),
        point("ASE", "ase", (6, 6, 6, 6, 9, 9, 9, 9, 12, 12), 0.02),
        point("linear to 3", "linear", (3, 3, 6, 6, 6, 9, 9, 9, 12, 12), 0.03),
        point("exit 9", "exit", (9,) * 10, 0.015),
        point("balanced", "recipe", (3, 6, 6, 9, 9, 9, 12, 12, 12, 9), 0.05),
        point("7 steps", "steps", (12,) * 7, 0.009),
    )
    latencies = [
        StepLatency(
            choice=Exit(depth, engine),
            guided=False,
            median=depth * 3.2,
            p10=depth * 3.0,
            p90=depth * 3.9,
            rounds=25,
        )
        for engine in ("", "cpu-bf16")
        for depth in (3, 6, 9, 12)
    ]
    return Front(
        eecompile="0.1.0",
        network=network,
        engines=("cpu", "cpu-bf16"),
        identity="9f2c",
        machine={"cpu": "AMD EPYC", "cores": "2"},
        settings=TuningSettings(solver="ddim", steps=10, use=("exits", "forecasts")),
        unit="range",
        seconds=312.0,
        latencies=tuple(latencies),
        moments=MOMENTS,
        error_terms=("9", "6", "3", "again 1"),
        errors=tuple(tuple(way * t / 1e6 for t in MOMENTS) for way in (1, 3, 9, 2)),
        points=points,
        comparisons=(
            BaselineComparison(
                baseline="ASE", found="budget-60", time_share=0.97, distance_ratio=0.55,
                interval=(0.5, 0.61), time_share_at_distance=0.8,
            ),
            BaselineComparison(
                baseline="7 steps", found="budget-60", time_share=0.9, distance_ratio=1.22,
                interval=(1.1, 1.3),
            ),
        ),
        warnings=("48 held-out samples tell distances to within 15 %",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(sample_front()), encoding="utf-8")
    return path


def test_it_says_what_came_out() -> None:
    text = page_of(sample_front())
    assert "45 % less distance to full depth" in text
    assert "7 steps beat budget-60" in text
    assert "to within 15 %" in text
    assert "12, again, 9, again, 9" in text.replace("@cpu-bf16", "")
    assert len(text.encode()) < 3_000_000


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_with_its_plots_and_fetches_nothing(
    browser: Browser, page: Path, dark: bool
) -> None:
    browser.open(page, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    drawn = browser.run("return document.querySelectorAll('.plot .main-svg').length")
    assert drawn >= 4
    bars = browser.run("return document.querySelectorAll('.bars .point').length")
    assert bars == 2 * 10


def test_long_schedules_are_short_until_they_are_opened(browser: Browser, tmp_path: Path) -> None:
    front = sample_front()
    kinds = (Exit(12), Forecast(1), Span(6, 12, 2, 12, "cpu-bf16"), Exit(9), Exit(12, "cpu-bf16"))
    mixed = (*[Exit(12)] * 3, *(kinds[step * step % 11 % 5] for step in range(47)))
    even = (*[Exit(12)] * 4, *[Forecast(1), Exit(12)] * 23)
    points = [
        msgspec.structs.replace(point, steps=50, choices=(mixed, even)[index % 2])
        for index, point in enumerate(front.points)
    ]
    path = tmp_path / "long.html"
    path.write_text(page_of(msgspec.structs.replace(front, points=tuple(points))), "utf-8")
    browser.open(path)
    heights = "return [...document.querySelectorAll('#points tbody tr')].map(r => r.offsetHeight)"
    assert max(browser.run(heights)) < 70
    summaries = "return [...document.querySelectorAll('#points summary')].map(s => s.textContent)"
    shown = browser.run(summaries)
    assert shown.count("12 x 4, (~1 12) x 23") == 4
    assert all(text.endswith(", ...") for text in shown if "~1 12" not in text)
    browser.run("document.querySelectorAll('#points summary').forEach(each => each.click())")
    whole = browser.run("return document.querySelector('#points').innerText")
    assert whole.count("forecast1, 12, forecast1, 12") >= 4
    assert max(browser.run(heights)) > 100
    browser.open(path, width=400)
    assert max(browser.run(heights)) < 70


def test_tables_sort(browser: Browser, page: Path) -> None:
    browser.open(page)
    column = """
        const rows = [...document.querySelectorAll('#points tbody tr')];
        return rows.map(row => row.cells[7].dataset.value);
    """
    browser.run("document.querySelector('#points th:nth-child(8) button').click()")
    values = [float(value) for value in browser.run(column) if value]
    assert values == sorted(values)
    assert len(values) == 7


def test_a_kind_can_be_hidden(browser: Browser, page: Path) -> None:
    browser.open(page)
    rows = "return [...document.querySelectorAll('#points tbody tr')].filter(r => !r.hidden).length"
    before = browser.run(rows)
    browser.run("document.querySelector('[data-key=\"1\"]').click()")  # fewer steps
    assert browser.run(rows) == before - 1


def test_a_narrow_screen_has_no_sideways_scroll(browser: Browser, page: Path) -> None:
    browser.open(page, width=380)
    wide = browser.run("return document.documentElement.scrollWidth")
    assert wide <= 380


def test_names_are_never_markup(browser: Browser, tmp_path: Path) -> None:
    front = sample_front(MARKUP)
    named = [msgspec.structs.replace(p, name=MARKUP) if p.kind == "found" else p
             for p in front.points]  # fmt: skip
    front = msgspec.structs.replace(
        front, points=tuple(named), error_terms=(MARKUP,) * 4, engines=(MARKUP, "cpu-bf16")
    )
    path = tmp_path / "report.html"
    path.write_text(page_of(front), encoding="utf-8")
    browser.open(path)
    assert browser.run("return document.title") == f"{MARKUP}: exit schedules by eecompile"
    assert browser.run("return document.querySelectorAll('main img').length") == 0
    assert browser.run("return document.querySelectorAll('h1 b').length") == 0
    assert browser.complaints() == []


def test_a_front_of_full_depth_alone(browser: Browser, tmp_path: Path) -> None:
    front = sample_front()
    bare = msgspec.structs.replace(
        front, points=front.points[:1], comparisons=(), warnings=(), errors=(), error_terms=()
    )
    path = tmp_path / "report.html"
    path.write_text(page_of(bare), encoding="utf-8")
    browser.open(path)
    assert browser.complaints() == []
