"""The pictures of the documents: samples side by side, and the pages of tune and compare.

    python scripts/pictures.py out/fashion-dit/cpu schedules report

The second folder is of ``eecompile tune`` for the engine set, the third of ``eecompile compare``.
Pages are photographed in Chromium (``apt-get install chromium chromium-driver``).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from results import ROOT, main

from eecompile import Sampler
from eecompile.show.pictures import save_grid
from eecompile.tune import Front, read_front

IMAGES = ROOT / "docs" / "images"
SHARE = 0.5  # of full depth's time
HIGHEST = 760  # pixels of a picture of a page


def rows_of(front: Front) -> dict[str, tuple[int, object]]:
    """What is shown, by its title: the steps and the schedule."""

    def nearest(kind: str) -> tuple[str, tuple[int, object]]:
        found = [point for point in front.points if point.kind == kind]
        best = min(found, key=lambda point: abs(point.time_share - SHARE))
        told = f"{best.time_share:.2f} of the time, distance {best.distance:.3f}"
        return told, (best.steps, best.schedule)

    (full,) = (point for point in front.points if point.kind == "full")
    found, schedule = nearest("found")
    fewer, steps = nearest("steps")
    return {
        f"{full.steps} steps ({front.settings.solver}) at full depth": (full.steps, "full"),
        f"the schedule that tune found for half the time: {found}": schedule,
        f"{steps[0]} steps at full depth: {fewer}": steps,
    }


def samples(engines: Path, front: Front, output: Path) -> None:
    """A row of samples for each program, from the same seeds."""
    strips = []
    with Sampler.open(engines) as sampler:
        bounds = sampler.interface.state.range or (-1.0, 1.0)
        for title, (steps, schedule) in rows_of(front).items():
            made = sampler.sample(
                10,
                solver=front.settings.solver,
                steps=steps,
                schedule=schedule,  # type: ignore[arg-type]
                seed=1,
                label=np.arange(10),
            )
            strip = io.BytesIO()
            save_grid(made, bounds, strip, title=title, columns=10)
            strips.append(Image.open(strip))
    sizes = np.array([strip.size for strip in strips])
    whole = Image.new("RGB", (sizes[:, 0].max(), sizes[:, 1].sum()), "white")
    for strip, top in zip(strips, np.cumsum(sizes[:, 1]) - sizes[:, 1], strict=True):
        whole.paste(strip, (0, int(top)))
    whole.save(output, optimize=True)


def pages(shown: Mapping[Path, tuple[Path, str]]) -> None:
    """A picture of a section of each page, by where it goes: the page and the heading."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService

    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("headless", "no-sandbox", "hide-scrollbars", "window-size=1200,1000"):
        options.add_argument(f"--{flag}")
    driver = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    try:
        for output, (page, heading) in shown.items():
            driver.get(page.resolve().as_uri())
            driver.implicitly_wait(20)
            driver.find_element("css selector", "[data-plots=drawn]")
            driver.execute_script("document.querySelector('.keys').hidden = true")
            section = driver.find_element("xpath", f"//section[h2='{heading}']")
            picture = Image.open(io.BytesIO(section.screenshot_as_png))
            picture.crop((0, 0, picture.width, min(picture.height, HIGHEST))).save(
                output, optimize=True
            )
    finally:
        driver.quit()


def drawn() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("engines", "tuned", "compared"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    samples(args.engines, read_front(args.tuned / "front.json"), IMAGES / "samples.png")
    pages(
        {
            IMAGES / "tune.png": (args.tuned / "report.html", "The front"),
            IMAGES / "compare.png": (args.compared / "report.html", "Samples"),
        }
    )


if __name__ == "__main__":
    main(drawn)
