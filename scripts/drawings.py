"""The drawings and plots of the documents, as SVG, from figures that are stored.

python scripts/drawings.py            writes docs/images/*.svg
python scripts/drawings.py --check    says which are not what the figures would give
"""

from __future__ import annotations

import argparse
import html
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from results import BENCHMARKS, ROOT, main

from eecompile import UsageError

IMAGES = ROOT / "docs" / "images"
INK, SOFT, LINE, BLUE, OCHRE = "#1d2126", "#59616b", "#dfe2e6", "#1653bf", "#cb8614"
WIDE, LEFT, ROW = 760, 230, 26  # pixels
TOP = 40
STEPS = 8
BLOCKS = 6


def text(x: float, y: float, said: str, **more: str) -> str:
    given = {"font-size": "13", "fill": INK} | {k.replace("_", "-"): v for k, v in more.items()}
    attributes = " ".join(f'{name}="{value}"' for name, value in given.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{html.escape(said)}</text>'


def rect(x: float, y: float, width: float, height: float, colour: str, dash: str = "") -> str:
    look = f'fill="{colour}"' if not dash else f'fill="none" stroke="{colour}" {dash}'
    size = f'width="{width:.1f}" height="{height:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} {look}/>'


def line(points: Iterable[Sequence[float]], colour: str, width: float = 1.5) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def picture(parts: Iterable[str], height: float, said: str) -> str:
    font = 'font-family="system-ui, sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {height:.0f}" {font}>'
    back = rect(0, 0, WIDE, height, "#ffffff")
    body = "\n".join(parts)
    return f"{head}\n<title>{html.escape(said)}</title>\n{back}\n{body}\n</svg>\n"


def choices() -> str:
    """What exits, forecasts and spans evaluate, step by step."""
    rows = {
        "exits: 6 blocks, then 4, then 2": [set(range(n)) for n in (2, 2, 2, 4, 4, 6, 6, 6)],
        "every 2nd prediction forecast": [set(range(6)) if i % 2 or not i else set()
                                          for i in range(STEPS)],
        "blocks 3 to 5 skipped, their change forecast": [
            set(range(6)) if i % 2 or not i else {0, 1, 5} for i in range(STEPS)
        ],
    }  # fmt: skip
    parts, cell, high = [], 56, 13
    for index, (said, steps) in enumerate(rows.items()):
        top = TOP + index * (BLOCKS * high + 50)
        parts.append(text(10, top - 10, said, font_weight="600"))
        for step, run in enumerate(steps):
            for block in range(BLOCKS):
                place = (20 + step * cell, top + (BLOCKS - 1 - block) * high, cell - 8, high - 2)
                dash = 'stroke-dasharray="2 2"'
                parts.append(rect(*place, BLUE) if block in run else rect(*place, LINE, dash))
        share = sum(map(len, steps)) / (BLOCKS * STEPS)
        across = 40 + STEPS * cell
        parts.append(text(across, top + 40, f"{share:.0%} of the blocks", fill=SOFT))
    top = TOP + 3 * (BLOCKS * high + 50) - 18
    parts.append(text(20, top, "noise (T)", fill=SOFT))
    parts.append(text(STEPS * cell - 40, top, "data (0)", fill=SOFT))
    return picture(parts, top + 14, "What each kind of choice evaluates at each step")


def peers() -> str:
    """Speed-up over eager PyTorch with the same schedule."""
    stored = json.loads((BENCHMARKS / "peers-cpu.json").read_text())
    parts, top = [], TOP
    for name in ("fashion-dit", "DiT-S/2"):
        rows = stored[name]["rows"]
        scale = (WIDE - LEFT - 60) / 4.2
        parts.append(text(10, top - 12, f"{name}, batch {stored['batch']}", font_weight="600"))
        for row in rows:
            low, middle, high = row["over eager, same schedule"]
            ours = row["by"].startswith("eecompile")
            parts.append(text(LEFT - 8, top + 14, row["by"], text_anchor="end", fill=SOFT))
            parts.append(rect(LEFT, top, middle * scale, ROW - 8, BLUE if ours else "#9aa3ad"))
            ends = [(LEFT + low * scale, top + 9), (LEFT + high * scale, top + 9)]
            parts.append(line(ends, INK, 1))
            parts.append(text(LEFT + high * scale + 6, top + 14, f"{middle:.2f}"))
            top += ROW
        top += 44
    parts.append(
        text(LEFT, top - 24, "times as fast as eager PyTorch; lines: all rounds", fill=SOFT)
    )
    return picture(parts, top - 10, "Speed-up over eager PyTorch with the same exit schedule")


def front(case: str, title: str) -> str:
    """Distance against time: what tune found, and fewer steps."""
    stored = json.loads((BENCHMARKS / "schedules-cpu.json").read_text())["cases"][case]
    programs = stored["programs on the held-out samples"]
    kinds = {"found": BLUE, "steps": OCHRE}
    shown: list[dict[str, Any]] = [p for p in programs if p["kind"] in kinds and p["distance"]]
    logs = [math.log10(p["distance"]) for p in shown]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    height, left, right = 340, 70, WIDE - 120

    def at(p: dict[str, Any]) -> tuple[float, float]:
        share = (math.log10(p["distance"]) - low) / (high - low)
        return left + p["time_share"] * (right - left), TOP + (1 - share) * height

    parts = [text(left, 20, title, font_weight="600")]
    for power in range(low, high + 1):
        y = TOP + (high - power) / (high - low) * height
        parts += [line([(left, y), (right, y)], LINE, 1)]
        parts += [
            text(left - 6, y + 4, f"{10.0**power:.{max(0, -power)}f}", text_anchor="end", fill=SOFT)
        ]
    for tenth in range(0, 11, 2):
        x = left + tenth / 10 * (right - left)
        parts.append(text(x, TOP + height + 20, f"{tenth / 10:g}", text_anchor="middle", fill=SOFT))
    for kind, colour in kinds.items():
        mine = sorted((p for p in shown if p["kind"] == kind), key=lambda p: p["time_share"])
        parts.append(line(map(at, mine), colour))
        for p in mine:
            x, y = at(p)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        x, y = at(mine[-1])
        said = "found by tune" if kind == "found" else "fewer steps"
        parts.append(text(x + 10, y + 4, said, fill=colour))
    words = "time (share of full depth's); upright: distance to full depth (data's range)"
    parts.append(text(left, TOP + height + 42, words, fill=SOFT))
    return picture(parts, TOP + height + 54, title)


def made() -> dict[str, str]:
    """Every picture, by the name of its file."""
    return {
        "choices": choices(),
        "peers": peers(),
        "schedules-ddim": front("ddim", "Shipped network, DDIM, 50 steps"),
        "schedules-dpmpp-2m": front("dpmpp-2m", "Shipped network, DPM-Solver++ 2M, 20 steps"),
    }


def drawn() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name, svg in made().items():
        path: Path = IMAGES / f"{name}.svg"
        if check and (not path.is_file() or path.read_text() != svg):
            raise UsageError(
                found=f"{path} that is not what its figures give",
                expected="the same",
                remedy="run python scripts/drawings.py",
            )
        path.write_text(svg)


if __name__ == "__main__":
    main(drawn)
