"""A tuning as a page."""

from __future__ import annotations

from collections.abc import Iterator

from eecompile.show.page import Page, Plot, Section, page_text
from eecompile.show.table import FactList
from eecompile.tune import plots
from eecompile.tune.findings import findings
from eecompile.tune.report import Front
from eecompile.tune.tables import comparisons_table, latencies_table, points_table


def page_of(front: Front) -> str:
    """``report.html``."""
    looks = plots.looks_of(front)
    return page_text(
        Page(
            command="tune",
            network=front.network,
            what="exit schedules",
            machine=front.machine,
            version=front.eecompile,
            opening=list(_opening(front)),
            role="Kinds",
            keys=list(looks),
            marks=looks,
            sections=[
                *_plots(front),
                Section("All programs", parts=[points_table(front)]),
                Section("Against other schedules", parts=[comparisons_table(front)]),
                Section("What a step takes", parts=[latencies_table(front)]),
            ],
        )
    )


def _opening(front: Front) -> Iterator[Section]:
    if sentences := list(findings(front.points, front.comparisons)):
        yield Section("In short", lines=sentences)
    if front.warnings:
        yield Section("Before you rely on it", lines=front.warnings, warns=True)
    yield Section("How it was found", parts=[_settings(front)])


def _settings(front: Front) -> FactList:
    settings = front.settings
    exits = "exits" if "exits" in settings.use else "full depth"
    allowed = [
        f"{exits} of " + ", ".join(front.engines),
        *(["forecasts of the prediction"] if "forecasts" in settings.use else []),
        *(["spans"] if "spans" in settings.use else []),
        *(["depth never falling as t goes to 0"] if settings.monotone else []),
    ]
    sampling = f"{settings.solver}, {settings.steps} steps, guidance {settings.guidance:g}"
    if settings.guidance != 1 and settings.guidance_interval:
        low, high = settings.guidance_interval
        sampling += f" between t = {low:g} and {high:g}"
    if settings.shape:
        sampling += ", samples of " + "x".join(map(str, settings.shape))
    return FactList(
        {
            "sampling": sampling,
            "choices": "; ".join(allowed),
            "chosen by": f"{settings.seeds} samples of seed {settings.seed}",
            "reported on": f"{settings.held_out} further samples, in batches of {settings.batch}",
            "tuning": f"{front.seconds:.0f} s",
            "eecompile": front.eecompile,
        }
    )


def _plots(front: Front) -> Iterator[Section]:
    words = (
        "Lower and further left is better. Time is of whole samplings; distance is that of the "
        "samples to those at full depth from the same seeds, on samples that no schedule was "
        "chosen by. Whiskers are 95 % intervals of the distance. The broad grey line is the front: "
        "no program is better in both. Dotted upright lines are the budgets, and full depth "
        "itself is at time 1 and distance 0, which the scale does not reach."
    )
    placed = [Plot(plots.front_plot(front), "Distance against time", wide=True)]
    yield Section("The front", words, plots=placed)
    words = (
        "A bar for each step, as high as the number of blocks that run; no bar where the "
        "prediction is forecast. Hatching tells engine sets apart."
    )
    if chosen := plots.choices(front):
        placed = [Plot(chosen, "Depth at each step, by schedule", wide=True)]
        yield Section("Found schedules", words, plots=placed)
    else:
        yield Section("Found schedules", "No schedule but full depth fits.")
    words = (
        "Left: what taking a choice at one step alone does to the samples, measured at some steps "
        "and interpolated. Right: the sum of the steps' measured times against whole samplings, "
        "with whiskers from the fastest to the slowest round; on the dotted line they agree."
    )
    placed = [Plot(plots.predictions(front), "Time, predicted and measured")]
    if alone := plots.errors(front):
        placed.insert(0, Plot(alone, "What each choice does to the samples, by t"))
    yield Section("What was measured", words, plots=placed)
