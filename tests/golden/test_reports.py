"""Reports and manifests: read and written again, in the terminal, and as pages."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from PIL import Image

from eecompile import ExitSchedule
from tests.golden import adapters
from tests.golden.shown import plots, terminal, visible
from tests.golden.stored import FOLDER, check
from tests.golden.test_programs import LEARNED, SHIPPED, compiled, network

REPORTS = FOLDER / "reports"
Changed = Callable[[bytes], bytes]


def picture(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("name", ["front", "report", "evaluation"])
def test_a_report_survives_reading_and_writing(name: str, tmp_path: Path) -> None:
    path = REPORTS / f"{name}.json"
    check(f"reports/{name}.json", adapters.rewritten(path, tmp_path).decode())


def test_a_schedule_survives_reading_and_writing() -> None:
    path = REPORTS / "schedule.json"
    about = msgspec.json.decode(path.read_bytes())["about"]
    check("reports/schedule.json", ExitSchedule.read(path).to_json(**about).decode())


@pytest.mark.parametrize(
    "name", ["front", "report", "evaluation", "bundle", "engine-set", "doctor"]
)
def test_in_the_terminal(name: str) -> None:
    check(f"tables/{name}.txt", terminal(adapters.table(REPORTS / f"{name}.json")))


def test_what_export_and_a_dry_run_show() -> None:
    check("tables/export.txt", terminal(adapters.exported_table(REPORTS / "bundle.json")))
    segments = [("segment-00-exits-3-6.onnx", (3, 6), 4_000_000, True),
                ("segment-01-exits-6.onnx", (6,), 123, False)]  # fmt: skip
    reasons = ["the target's precision changed", "one graph [6] changed"]
    shown = [adapters.planned_table(reasons, segments), adapters.planned_table([], [])]
    check("tables/dry-run.txt", terminal(*shown))


def test_programs_in_the_terminal() -> None:
    stochastic = compiled(LEARNED, "ddpm", "12,9,6,3", clipped=True)
    named = compiled(SHIPPED, "dpmpp-2m", "12@cpu,again,3@gpu-fp16", steps=6)
    long = compiled(SHIPPED, "dpmpp-2m", "12,again,9,3", steps=12)
    stamped = compiled(SHIPPED, "heun", "12,9,3")
    shown = [
        adapters.program_table(stochastic),
        adapters.program_table(named, network(SHIPPED)),
        adapters.program_table(long),
        adapters.program_table(long, whole=True),
        adapters.program_table(stamped),
        adapters.short_program_table(adapters.open_program(long)),
    ]
    check("tables/programs.txt", terminal(*shown))


@pytest.mark.parametrize("name", ["front", "report"])
def test_as_a_page(name: str, tmp_path: Path) -> None:
    images = {"cpu-chained: full": picture(3, 2), "cpu-chained: fast": picture(5, 4)}
    page = adapters.page(REPORTS / f"{name}.json", images, tmp_path)
    check(f"pages/{name}.txt", visible(page))
    check(f"pages/{name}-plots.txt", plots(adapters.figures_of(page)), numbers=True)
    if name == "report":
        assert page.count('src="data:image/png;base64,') == len(images)


def changed(name: str, change: Changed, folder: Path) -> Path:
    """A copy of a stored report with its bytes changed."""
    path = folder / f"{name}.json"
    path.write_bytes(change((REPORTS / path.name).read_bytes()))
    return path


def test_what_the_gate_says(tmp_path: Path) -> None:
    def slower(data: bytes) -> bytes:
        return data.replace(b'"median": 6.79,', b'"median": 9.0,').replace(
            b'"relative": 0.004', b'"relative": 0.4'
        )

    path = changed("report", slower, tmp_path)
    assert path.read_bytes() != (REPORTS / "report.json").read_bytes()
    sentences = adapters.regressed(path, REPORTS / "report.json")
    check("tables/gate.txt", "\n".join(sentences) + "\n")
