"""What a user writes with the public API; type checkers read it, and nothing runs it.

A line that ends with ``# error`` must be refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

import eecompile
from eecompile import (
    Exit,
    ExitSchedule,
    Forecast,
    Program,
    Sampler,
    SampleRequest,
    StepResult,
    UsageError,
    ddim,
)
from eecompile.compare import compare
from eecompile.compiler import bundle_from_recipe, engine_set_from_bundle
from eecompile.evaluate import evaluate
from eecompile.serve import Scheduler
from eecompile.store import BundleManifest, open_bundle
from eecompile.tune import tune

Images = NDArray[np.float32]


def deploy(recipe: Path, place: Path) -> None:
    assert_type(bundle_from_recipe(recipe, place / "bundle"), BundleManifest)
    engine_set_from_bundle(place / "bundle", Path("cpu"), place / "cpu")
    engine_set_from_bundle(place / "bundle", 3, place / "cpu")  # error
    manifest = open_bundle(place / "bundle")
    depths: list[int] = [each.depth for each in manifest.exits]
    names: list[str] = [each.depth for each in manifest.exits]  # error
    print(depths, names)


def sample(engines: Path) -> Images:
    with Sampler.open(engines, "out/other", threads=2) as sampler:
        images = sampler.sample(16, label=3, guidance=2.0, schedule="half", steps=20)
        assert_type(images, Images)
        sampler.sample("16")  # error
        sampler.sample(16, steps="20")  # error
        sampler.sampel(16)  # error
        sampler.sample(schedule=[6, Exit(12), Forecast(1)], solver=partial(ddim, eta=0.5))
        sampler.sample(schedule={"half": 3})  # error
        steps = sampler.steps(4, schedule=ExitSchedule.parse("12,forecast1,6"))
        assert_type(steps, Iterator[StepResult])
        for step in steps:
            seconds: float = step.seconds
            text: str = step.choice.text
            print(seconds, text)
        request = SampleRequest(n=4, conditions={"label": np.arange(4)})
        on_device = sampler.sample_on_device(request)
        array = np.from_dlpack(on_device)
        print(array, on_device.shape)  # error
        program: Program = sampler.program("dpmpp-2m", 20)
        return sampler.sample(solver=program)


def wrong(engines: Path) -> None:
    eecompile.Sampller.open(engines)  # error
    try:
        Sampler.open(engines, check="yes")  # error
    except UsageError as error:
        remedy: str = error.remedy
        print(remedy)


def measured(engines: Path) -> None:
    print(tune, compare, evaluate, Scheduler)
