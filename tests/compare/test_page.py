"""The page of a comparison, read as a file and looked at in Chromium."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from plotly.colors import sample_colorscale, unlabel_rgb

from eecompile.compare.page import page_of
from eecompile.compare.report import (
    Candidate,
    Comparison,
    ComparisonSettings,
    EvaluationLatency,
    ExitFigures,
    OutputError,
    TrajectoryFigures,
)
from eecompile.errors import UsageError
from eecompile.programs.choice import Exit
from eecompile.show.page import LIMIT
from eecompile.show.plots import readable
from eecompile.store.manifest import OperatorError, Quantisation
from tests.compare.chromium import Browser, chromium

EXITS = (3, 6, 9, 12)
BATCHES = (1, 16)
TIMES = (10.0, 250.0, 500.0, 750.0, 990.0)
SCHEDULES = {
    "full": (12,) * 20,
    "balanced": (6,) * 6 + (9,) * 9 + (12,) * 5,
    "fast": (3,) * 6 + (6,) * 8 + (9,) * 4 + (12,) * 2,
}
MARKUP = "<b>bold</b> & <img src=x onerror=\"document.title='ran'\"> %{x} </script>"


def latencies(depth: int, milliseconds: float) -> tuple[EvaluationLatency, ...]:
    """As of a network whose blocks take ``milliseconds`` each at batch 16."""
    rows = []
    for batch in BATCHES:
        median = (0.9 + depth) * milliseconds * (0.12 + 0.88 * batch / 16)
        rows.append(EvaluationLatency(batch=batch, median=median, p90=median * 1.07, rounds=60))
    return tuple(rows)


def errors(depth: int, scale: float) -> tuple[OutputError, ...]:
    return tuple(
        OutputError(
            timestep=time,
            batch=batch,
            worst=scale * depth * (1 + time / 300) * 3,
            mean=scale * depth / 9,
            relative=scale * depth * (1 + time / 300),
        )
        for time in TIMES
        for batch in BATCHES
    )


def candidate(name: str, backend: str, milliseconds: float, scale: float) -> Candidate:
    """With figures of all exits; ``scale`` 0 for the reference."""
    exits = tuple(
        ExitFigures(
            depth=depth,
            latencies=latencies(depth, milliseconds),
            errors=errors(depth, scale) if scale else (),
            metrics={"l2": scale * depth * 8, "cosine": 1 - scale, "psnr": 96.0 - depth}
            if scale
            else {},
            passed=scale * depth < 1e-2,
        )
        for depth in EXITS
    )
    return Candidate(
        name=name,
        kind="engines" if scale else "torch",
        backend=backend,
        precision="fp32" if scale < 1e-5 else "bf16",
        layout="chained" if scale else "",
        versions={backend: "1.31.1"},
        bytes=15_300_000 if scale else None,
        resident_mib=61.4 / milliseconds if scale else None,
        exits=exits,
    )


def trajectories(name: str, milliseconds: float) -> Iterator[TrajectoryFigures]:
    for place, (schedule, depths) in enumerate(SCHEDULES.items()):
        share = sum(depths) / (12 * len(depths))
        yield TrajectoryFigures(
            candidate=name,
            schedule=schedule,
            choices=tuple(map(Exit, depths)),
            batch=16,
            seconds_per_sample=milliseconds * (share + 0.03) * 12 * len(depths) / 16e3,
            speed_up=1 / share if not place else 0.96 / share,
            ideal_speed_up=1 / share,
            psnr=38.0 - 7 * place + milliseconds / 10 if place else None,
            distance=0.011 * place**1.6 + milliseconds / 2e3 if place else None,
        )


def sample_report() -> Comparison:
    """Three candidates that ran, and one that was skipped."""
    candidates = (
        candidate("torch eager", "torch", 4.1, 0.0),
        candidate("cpu", "onnxruntime", 3.2, 2e-7),
        candidate("cpu-bf16", "openvino", 1.6, 1.1e-3),
        Candidate(
            name="rtx-fp16",
            kind="engines",
            backend="tensorrt-rtx",
            precision="fp16",
            layout="chained",
            skipped="found no NVIDIA GPU; expected one of compute capability 7.5 or later",
        ),
    )
    return Comparison(
        eecompile="0.1.0",
        network="fashion-dit",
        bundle_digest="9f2c4e71a0b3d5",
        machine={"CPU": "AMD EPYC", "cores": "2", "memory": "24 GiB", "system": "Linux x86_64"},
        reference="torch eager",
        settings=ComparisonSettings(
            batches=BATCHES,
            rounds=60,
            solver="ddim",
            steps=20,
            seed=0,
            timesteps=TIMES,
            absolute=1e-3,
            relative=1e-3,
        ),
        candidates=candidates,
        trajectories=tuple(
            row
            for name, milliseconds in (("torch eager", 4.1), ("cpu", 3.2), ("cpu-bf16", 1.6))
            for row in trajectories(name, milliseconds)
        ),
    )


def png(seed: int = 0, shape: tuple[int, int] = (64, 256)) -> bytes:
    file = io.BytesIO()
    rng = np.random.default_rng(seed)
    tones = np.kron(rng.integers(0, 255, (8, 32)), np.ones((shape[0] // 8, shape[1] // 32)))
    Image.fromarray(tones.astype(np.uint8)).save(file, format="PNG")
    return file.getvalue()


def sample_images() -> dict[str, bytes]:
    names = ("torch eager", "cpu", "cpu-bf16")
    return {
        f"{name}, {schedule}": png(place)
        for place, (name, schedule) in enumerate(itertools.product(names, SCHEDULES))
    }


def changed(**fields: object) -> Comparison:
    return msgspec.structs.replace(sample_report(), **fields)


def quantised() -> Quantisation:
    """Forty operators, of which those with the largest errors are kept."""
    operators = tuple(
        OperatorError(
            name=f"blocks.{place}.mlp.fc1.weight",
            kind="MatMul",
            cost=0.025,
            kept=place >= 38,
            errors=tuple(1e-4 * 1.1**place * (1 + time / 500) for time in TIMES),
        )
        for place in range(40)
    )
    return Quantisation(
        kind="int8",
        scheme="U8S8",
        samples=16,
        rows=320,
        steps=TIMES[::-1],
        calibration="5e1f",
        operators=operators,
        share=0.95,
        timesteps=TIMES,
    )


def poor_reports() -> dict[str, Comparison]:
    """Reports in which something is missing."""
    whole = sample_report()
    torch, cpu, bf16, skipped = whole.candidates
    broken = OutputError(timestep=10.0, batch=1, worst=None, mean=None, relative=None)
    bare = msgspec.structs.replace(cpu, exits=tuple(ExitFigures(depth=depth) for depth in EXITS))
    some = [msgspec.structs.replace(exit_, latencies=()) for exit_ in cpu.exits[:2]]
    failed = msgspec.structs.replace(cpu, exits=tuple(some), skipped="the runner failed")
    odd = msgspec.structs.replace(
        bf16, exits=(msgspec.structs.replace(bf16.exits[0], errors=(broken,)), *bf16.exits[1:])
    )
    short = msgspec.structs.replace(whole.trajectories[1], choices=())
    return {
        "no trajectories": changed(trajectories=()),
        "only full depth": changed(trajectories=whole.trajectories[:1]),
        "one candidate": changed(candidates=(torch,), trajectories=()),
        "one that is not the reference": changed(candidates=(cpu,)),
        "nothing measured": changed(candidates=(bare,), trajectories=()),
        "failed half-way": changed(candidates=(torch, failed)),
        "all skipped": changed(candidates=(skipped,), trajectories=()),
        "no candidates": changed(candidates=(), trajectories=()),
        "not finite": changed(candidates=(torch, odd), trajectories=(short,)),
        "many": changed(
            candidates=tuple(
                msgspec.structs.replace(cpu, name=f"candidate {index}") for index in range(14)
            ),
            trajectories=(),
        ),
    }


def write_page(report: Comparison, images: dict[str, bytes], path: Path) -> None:
    path.write_text(page_of(report, images), "utf-8")


def as_words(page: str) -> str:
    return re.sub(r"<[^>]*>", " ", page.partition("<script")[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(sample_report(), sample_images(), path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


# The file


def test_it_is_small_and_the_same_every_time(page: Path, tmp_path: Path) -> None:
    again = tmp_path / "report.html"
    write_page(sample_report(), sample_images(), again)
    assert again.read_bytes() == page.read_bytes()
    assert page.stat().st_size < LIMIT
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_it_says_what_was_compared_and_how_and_what_was_not(page: Path) -> None:
    words = as_words(page.read_text())
    for fact in ("fashion-dit", "AMD EPYC", "9f2c4e71a0b3d5", "ddim, 20 steps, seed 0"):
        assert fact in words
    assert "median of 60 rounds" in words
    assert "else absolute 0.001, relative 0.001" in words
    assert "found no NVIDIA GPU; expected one of compute capability 7.5 or later" in words
    assert "is cpu-bf16: 20.6 ms an evaluation, 2.56 times as fast as torch eager" in words
    assert "Outside the tolerance: cpu-bf16 at exit 12." in words


def test_outputs_that_are_not_finite_are_shown_as_such(tmp_path: Path) -> None:
    report = poor_reports()["not finite"]
    write_page(report, {}, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert 'data-value="inf">not finite<' in page
    assert "Not a finite number everywhere: outputs of cpu-bf16." in as_words(page)
    assert '"text":"not finite"' in page  # in its cell of the heat map


def test_pictures_that_would_make_it_too_large_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {}
    for label in ("one", "two", "three"):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (1200, 1600), np.uint8)).save(file, format="PNG")
        images[label] = file.getvalue()
    images["small"] = png()
    path = tmp_path / "report.html"
    write_page(sample_report(), images, path)
    assert path.stat().st_size <= LIMIT
    page = path.read_text()
    assert "Left out, as the page would be too large: two, three." in page
    assert re.findall(r'alt="Samples: (\w+)"', page) == ["one", "small"]


def test_a_picture_that_is_no_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(UsageError, match="'cpu' that is no PNG file"):
        write_page(sample_report(), {"cpu": b"GIF89a"}, path)
    assert not list(tmp_path.iterdir())


# In Chromium


def test_it_opens_without_complaints_and_fetches_nothing(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]


def traces(browser: Browser, caption: str) -> list[int]:
    """How many shapes of each kind the plots below such captions hold, each in an SVG."""
    return browser.run(
        """
        const figures = [...document.querySelectorAll(".plots figure")];
        return figures
          .filter((figure) => figure.innerText.startsWith(arguments[0]))
          .map((figure) => figure.querySelectorAll("svg " + arguments[1]).length);
        """,
        caption,
        {
            "Latency": ".bars .point path",
            "Error": ".hm image",
            "Depth": ".bars .point path",
            "Speed-up": ".scatterlayer .points path",
            "Speed against": ".scatterlayer .points path",
        }[caption],
    )


def test_all_plots_are_there(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert traces(browser, "Latency") == [12, 12]  # three candidates, four exits
    assert traces(browser, "Error") == [1, 1]
    assert traces(browser, "Depth") == [3 * 20]  # three schedules of 20 steps
    assert traces(browser, "Speed-up") == [6]
    assert traces(browser, "Speed against") == [9]
    titles = browser.run(
        "return [...document.querySelectorAll('.plot')].map((plot) => "
        "[...plot.querySelectorAll('.infolayer text')].map((_) => [_.classList[0], _.textContent])"
        ".filter(([kind]) => /[xy][0-9]*title$/.test(kind)).map((title) => title[1]))"
    )
    assert titles[:3] == [
        ["exit (depth in blocks)", "latency (ms an evaluation)"],
        ["exit (depth in blocks)", "latency (ms an evaluation)"],
        ["timestep", "exit (depth in blocks)"],
    ]
    assert titles[-3:] == [
        ["step (left: noise, right: data)", "depth (blocks)"],
        ["speed-up over full depth (times)", "exit schedule"],
        ["time (ms a sample)", "RMS distance to full depth (data's range)"],
    ]
    labels = browser.run(
        "return [...document.querySelectorAll('.textpoint')].map(_ => _.textContent)"
    )
    assert sorted(labels) == sorted([*SCHEDULES] * 3)


def test_each_cell_of_a_heat_map_has_its_figure(browser: Browser, page: Path) -> None:
    browser.open(page)
    texts, ticks, image = browser.run(
        """
        const plot = document.querySelector("figure[data-candidate] .plot");
        const box = (element) => {
          const { left, right, top, bottom } = element.getBoundingClientRect();
          return [left, right, top, bottom];
        };
        const all = (selector) => [...plot.querySelectorAll(selector)];
        const place = (text) => [text.textContent, ...box(text)];
        return [all(".annotation-text").map(place), all(".xtick, .ytick").map(place),
          box(plot.querySelector(".hm image"))];
        """
    )
    names = [name for name, *_ in ticks]
    assert names == [*(f"{time:g}" for time in TIMES), *map(str, EXITS)]
    left, right, top, bottom = image
    wide, high = (right - left) / len(TIMES), (bottom - top) / len(EXITS)
    expected = {
        (row, column): point.relative
        for row, exit_ in enumerate(reversed(sample_report().candidates[1].exits))
        for column, point in enumerate(exit_.errors[:: len(BATCHES)])
    }
    found = {}
    for text, *(west, east, north, south) in texts:
        cell = int(((north + south) / 2 - top) / high), int(((west + east) / 2 - left) / wide)
        found[cell] = float(text)
    assert found == pytest.approx(expected, rel=0.06)


def test_the_sensitivity_of_operators_is_a_heat_map(browser: Browser, tmp_path: Path) -> None:
    first, *others = sample_report().candidates
    chosen = msgspec.structs.replace(others[0], quantisation=quantised())
    path = tmp_path / "report.html"
    path.write_text(page_of(changed(candidates=(first, chosen, *others[1:])), {}), "utf-8")
    browser.open(path)
    names = browser.run(
        """
        const plot = [...document.querySelectorAll("figure")].find(
          (figure) => figure.textContent.includes("Sensitivity of operators: cpu"));
        return [...plot.querySelectorAll(".ytick")].map((tick) => tick.textContent);
        """
    )
    assert len(names) == 30
    assert names[-2:] == ["blocks.38.mlp.fc1.weight (kept)", "blocks.39.mlp.fc1.weight (kept)"]
    assert names[0] == "blocks.10.mlp.fc1.weight"
    assert "Sensitivity" not in page_of(sample_report(), {})


def test_the_pictures_are_decoded(browser: Browser, page: Path) -> None:
    browser.open(page)
    sizes = browser.run(
        "return [...document.images].map((image) => [image.alt, image.naturalWidth])"
    )
    assert sizes == [[f"Samples: {label}", 256] for label in sample_images()]


def column(browser: Browser, table: str, heading: str) -> list[str]:
    return browser.run(
        """
        const table = document.getElementById(arguments[0]);
        const heads = [...table.tHead.rows[0].cells];
        const index = heads.findIndex((head) => head.innerText.startsWith(arguments[1]));
        return [...table.tBodies[0].rows].map((row) => row.cells[index].innerText);
        """,
        table,
        heading,
    )


def press(browser: Browser, table: str, heading: str) -> list[str | None]:
    """Sort with the keyboard; the aria-sort of all columns that then have one."""
    from selenium.webdriver.common.keys import Keys

    button = browser.run(
        """
        const heads = [...document.querySelectorAll(`#${arguments[0]} thead th`)];
        return heads.find((head) => head.innerText.startsWith(arguments[1])).firstElementChild;
        """,
        table,
        heading,
    )
    button.send_keys(Keys.ENTER)
    script = "return [...document.querySelectorAll(`#${arguments[0]} th[aria-sort]`)]"
    script += ".map((head) => head.ariaSort).filter((order) => order !== 'none')"
    return browser.run(script, table)


def test_tables_sort_by_number_with_the_missing_last(browser: Browser, page: Path) -> None:
    browser.open(page)
    before = column(browser, "exits", "throughput")
    assert press(browser, "exits", "throughput") == ["ascending"]
    ascending = column(browser, "exits", "throughput")
    numbers = [float(text.replace(",", "")) for text in ascending]
    assert numbers == sorted(numbers)
    assert ascending != before
    assert ascending != sorted(ascending), "as text"
    assert press(browser, "exits", "throughput") == ["descending"]
    assert column(browser, "exits", "throughput")[0] == "2,564"
    for order in ("ascending", "descending"):
        assert press(browser, "exits", "relative") == [order]
        relative = column(browser, "exits", "relative")
        assert relative[-8:] == ["–"] * 8  # noqa: RUF001 - of the reference
        numbers = [float(text) for text in relative[:-8]]
        assert numbers == sorted(numbers, reverse=order == "descending")


def test_tables_sort_by_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert press(browser, "trajectories", "exit schedule") == ["ascending"]
    assert column(browser, "trajectories", "exit schedule") == [
        name for name in ("balanced", "fast", "full") for _ in range(3)
    ]


def test_a_candidate_can_be_hidden_everywhere(browser: Browser, page: Path) -> None:
    browser.open(page)
    key = "document.querySelector('[data-key][title=cpu]')"
    browser.run(f"{key}.click()")
    assert browser.run(f"return {key}.ariaPressed") == "false"
    browser.settle()
    assert traces(browser, "Latency") == [8, 8]
    assert traces(browser, "Speed against") == [6]
    assert "cpu" not in [
        browser.run("return arguments[0].innerText", row)
        for row in browser.run(
            "return [...document.querySelectorAll('#exits tbody tr:not([hidden]) th')]"
        )
    ]
    browser.run(f"{key}.click()")
    browser.settle()
    assert traces(browser, "Latency") == [12, 12]


# The least contrast of visible text to what is behind it, with what it says.
CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const over = ([r, g, b, a = 1], below) => [r, g, b].map((part, i) => part * a + below[i] * (1 - a));
function behind(element) {
  if (!element) return [255, 255, 255];
  return over(numbers(getComputedStyle(element).backgroundColor), behind(element.parentElement));
}
function luminance(colour) {
  const [r, g, b] = colour.map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}
"""
LEAST = """
const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
let least = [99, ""], count = 0;
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  const shown = element.checkVisibility() && element.getClientRects().length > 0;
  const said = texts.currentNode.textContent.trim();
  // Texts on a heat map's cells have the cells behind them: another test looks at those.
  if (!shown || !said || element.closest("[data-candidate] .annotation")) continue;
  const style = getComputedStyle(element);
  const colour = numbers(element instanceof SVGElement ? style.fill : style.color);
  const below = behind(element.closest("svg")?.parentElement ?? element);
  const found = contrast(over(colour, below), below);
  count += 1;
  if (found < least[0]) least = [found, said];
}
return [...least, count];
"""


def test_figures_stand_out_from_their_cells() -> None:
    for level in np.linspace(0, 1, 101):
        (cell,) = sample_colorscale("Viridis", [level])
        shares = np.array([*unlabel_rgb(cell)]) / 255
        linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        light = linear @ [0.2126, 0.7152, 0.0722]
        contrast = {"#000": (light + 0.05) / 0.05, "#fff": 1.05 / (light + 0.05)}
        assert contrast[readable(level)] >= 4.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_colours_stand_out(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    least, said, count = browser.run(CONTRAST + LEAST)
    assert count > 400
    assert least >= 4.5, said
    bars = browser.run(
        CONTRAST + "return [...document.querySelectorAll('.bars .point path')].map("
        "(bar) => contrast(numbers(bar.style.fill), behind(bar.closest('.plot'))))"
    )
    assert min(bars) >= 3


def test_the_plots_follow_the_theme_and_the_width(browser: Browser, page: Path) -> None:
    title = "return getComputedStyle(document.querySelector('.xtitle')).fill"
    browser.open(page)
    light = browser.run(title)
    browser.theme(dark=True)
    assert browser.run(title) != light
    browser.theme(dark=False)
    assert browser.run(title) == light
    browser.width(700)
    widths = "return [...document.querySelectorAll('.plot')].map((_) => [_.clientWidth, "
    widths += "_.querySelector('svg').clientWidth])"
    for container, drawn in browser.run(widths):
        assert container == drawn < 700


def test_it_is_light_and_narrow_while_it_is_printed(browser: Browser, page: Path) -> None:
    browser.open(page, dark=True)
    state = "return [getComputedStyle(document.documentElement).backgroundColor, "
    state += "document.querySelector('.wide svg').clientWidth]"
    dark = browser.run(state)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    colour, width = browser.run(state)
    assert colour == "rgb(255, 255, 255)"
    assert 600 < width < 720
    tables = browser.run(
        "return [...document.querySelectorAll('.scroll')].map((_) => _.scrollWidth - _.clientWidth)"
    )
    assert max(tables) <= 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    browser.settle()
    assert browser.run(state) == dark


def overflow(browser: Browser) -> int:
    return browser.run("return document.documentElement.scrollWidth - innerWidth")


def test_nothing_goes_over_the_edge_of_a_narrow_screen(browser: Browser, page: Path) -> None:
    browser.open(page, width=400)
    assert browser.run("return innerWidth") == 400
    assert overflow(browser) <= 0


def test_markup_in_names_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    report = msgspec.json.encode(sample_report()).decode()
    for name in ("cpu-bf16", "fashion-dit", "balanced", "AMD EPYC", "onnxruntime", "rtx-fp16"):
        report = report.replace(f'"{name}"', msgspec.json.encode(f"{name} {MARKUP}").decode())
    path = tmp_path / "report.html"
    write_page(msgspec.json.decode(report, type=Comparison), {MARKUP: png()}, path)
    browser.open(path, width=400)
    assert browser.complaints() == []
    assert browser.requests() == [path.as_uri()]
    assert browser.run("return document.title").startswith(f"fashion-dit {MARKUP}")
    words = browser.run("return document.querySelector('main').textContent")
    for name in ("cpu-bf16", "fashion-dit", "balanced", "AMD EPYC", "onnxruntime", "rtx-fp16"):
        assert f"{name} {MARKUP}" in words
    ticks = browser.run("return [...document.querySelectorAll('.ytick')].map(_ => _.textContent)")
    assert f"balanced {MARKUP}"[:23] + "…" in ticks
    assert overflow(browser) <= 0


@pytest.mark.parametrize("missing", poor_reports())
def test_it_opens_whatever_is_missing(browser: Browser, tmp_path: Path, missing: str) -> None:
    path = tmp_path / "report.html"
    write_page(poor_reports()[missing], {}, path)
    browser.open(path, width=400)
    assert browser.complaints() == []
    assert overflow(browser) <= 0
    assert "No samples were drawn." in browser.run("return document.body.innerText")
    assert not re.search(
        r"\b(nan|None|undefined|NaN)\b", browser.run("return document.body.innerText")
    )
