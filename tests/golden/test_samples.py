"""What every native solver samples with each CPU target: libraries' versions may not move it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from eecompile import Process, Sampler
from eecompile.programs.solvers import FACTS
from eecompile.runtime.engines.openvino import import_openvino
from eecompile.store.target import load_target
from tests.conftest import ROOT, Shared, building
from tests.golden import network
from tests.golden.stored import check_arrays

Arrays = dict[str, NDArray[np.float32]]
# How far samples, of which the root of the mean square is about 0.8, may be from those stored.
# Between onnxruntime 1.23 and 1.31, openvino 2026.1 and 2026.4, numpy 1.26 and 2.4, and between
# instruction sets, it was a third of that at most.
TOLERANCES = {"cpu": 2e-6, "cpu-openvino": 2e-6, "cpu-bf16": 0.02}
# Five times as far where a solver makes more of a difference in the network's outputs.
AMPLIFYING = ("heun", "dpm-solver-2", "dpm-solver-3", "pndm", "f-pndm")
EXITS = [3, 3, 6, 6, "forecast1", 6, 6, 6, 6, 6]
SPANS = [6, 6, "6/2-4:1", 6, "6/2-4:2", 6, 6, 6, 6, 6]
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "spans": {"solver": "ddim", "schedule": SPANS},
    "unguided": {"solver": "dpmpp-2m", "guidance": 1.0},
}


def has_bf16() -> bool:
    pytest.importorskip("openvino")
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@pytest.fixture(params=TOLERANCES)
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "cpu-bf16" and not has_bf16():
        pytest.skip("the CPU has no BF16")
    return name


@pytest.fixture
def engines(target: str, shared: Shared) -> Path:
    """An engine set of :mod:`tests.golden.network`; where torch is not, of a bundle at hand."""
    given = os.environ.get("EECOMPILE_GOLDEN_BUNDLE")
    bundle = Path(given) if given else shared("golden-bundle", network.export)
    chained = replace(load_target(ROOT / "engines" / f"{target}.toml"), layout="chained")
    return shared(f"golden-{target}", building(bundle, chained))


def sampled(engines: Path) -> Arrays:
    """A sample of every solver, by name; those of flows take the network's output for one's."""
    usual: dict[str, Any] = {"steps": 10, "schedule": EXITS, "guidance": 2.0, "label": 3, "seed": 1}
    with Sampler.open(engines, threads=1) as sampler:
        flow = Process(family="flow", prediction="flow")
        flows = Sampler(sampler.engine, replace(sampler.interface, process=flow))
        samples = {
            name: (sampler if "diffusion" in facts.families else flows).sample(solver=name, **usual)
            for name, facts in FACTS.items()
        }
        others = {name: sampler.sample(**usual | options) for name, options in OTHERS.items()}
    return {name: sample[0] for name, sample in (samples | others).items()}


def test_samples(target: str, engines: Path) -> None:
    samples = sampled(engines)
    bound = TOLERANCES[target]
    tolerances = {name: bound * (5 if name in AMPLIFYING else 1) for name in samples}
    check_arrays(f"samples/{target}.npz", samples, tolerances)
