"""The TensorRT libraries as peers, as far as that goes without a GPU: plans are really built."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from eecompile.compare import candidates
from eecompile.compare.candidates import Spec
from eecompile.compare.comparison import compare
from eecompile.compare.runners import TensorrtRunner
from eecompile.errors import BackendError
from eecompile.measure.machine import Gpu, gpus
from eecompile.store.bundle import open_engine_set
from tests.conftest import Shared

pytest.importorskip("tensorrt_rtx")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(gpus()), reason="there is a GPU: the failing half would run"),
]
FAKE = Gpu(name="none", compute_capability="9.0", memory_bytes=0, driver="", cuda="")


@pytest.fixture(scope="module")
def plans(bundle: Path, shared: Shared) -> Path:
    """What the peer builds for itself, kept."""
    spec = Spec(name="tensorrt-rtx", source="tensorrt-rtx", bundle=str(bundle))

    def kept(folder: Path) -> None:
        with candidates.plans(spec) as made:
            copytree(made, folder)

    return shared("plans", kept)


def test_the_peer_builds_a_plan_an_exit(plans: Path) -> None:
    manifest = open_engine_set(plans)
    assert (manifest.target.backend, manifest.target.precision) == ("tensorrt-rtx", "fp32")
    assert [len(plan.segments) for plan in manifest.exits] == [1, 1, 1, 1]
    assert all((plans / segment.file).stat().st_size > 1 << 20 for segment in manifest.segments)


def in_polygraphys_process(code: str, plans: Path, switch: str) -> str:
    """What a script prints that finds polygraphy set up for one of the libraries."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(plans)],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": switch},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OPENED = """
import sys
from eecompile.compare.runners import TensorrtRunner
from eecompile.errors import BackendError
try:
    with TensorrtRunner(sys.argv[1], 3):
        pass
except BackendError as error:
    print(error)
"""


def test_a_runner_says_what_it_needs(plans: Path) -> None:
    with pytest.raises(BackendError, match="start Python with POLYGRAPHY_USE_TENSORRT_RTX=1"):
        TensorrtRunner(plans, 3)
    assert "found no NVIDIA GPU; expected one, for tensorrt-rtx" in in_polygraphys_process(
        OPENED, plans, "1"
    )


# All that polygraphy's TrtRunner and EngineFromBytes ask of the library, which it also loads.
ASKED = """
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from polygraphy.mod.trt_importer import lazy_import_trt
trt = lazy_import_trt()
asked = {
    trt: "Runtime init_libnvinfer_plugins ICudaEngine IExecutionContext IOutputAllocator "
    "TensorIOMode",
    trt.ExecutionContextAllocationStrategy: "USER_MANAGED",
    trt.Runtime: "deserialize_cuda_engine",
    trt.ICudaEngine: "create_execution_context get_tensor_name get_tensor_mode get_tensor_dtype "
    "num_io_tensors is_shape_inference_io get_device_memory_size_for_profile_v2",
    trt.IExecutionContext: "set_input_shape set_tensor_address set_output_allocator "
    "set_device_memory active_optimization_profile execute_async_v3 get_tensor_shape",
}
print(trt.__name__ if hasattr(trt, "__name__") else trt.Logger.__module__)
print([name for part, names in asked.items() for name in names.split() if not hasattr(part, name)])
"""


def test_polygraphys_runner_finds_what_it_asks_of_tensorrt_rtx(plans: Path) -> None:
    library, missing = in_polygraphys_process(ASKED, plans, "1").splitlines()
    assert "tensorrt_rtx" in library
    assert missing == "[]"


def test_a_peer_that_builds_and_does_not_run_is_a_row_with_its_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "gpus", lambda: (FAKE,))  # its own process looks for itself
    made = compare(
        bundle,
        named=["tensorrt-rtx"],
        batches=(1,),
        rounds=1,
        steps=1,
        schedules=["fast"],
    ).report
    found = {each.name: each for each in made.candidates}
    assert found["tensorrt-rtx"].skipped == (
        "in a process of its own: found no NVIDIA GPU; expected one, for tensorrt-rtx; compare on "
        "a machine with a GPU and its driver, or leave that backend out."
    )
    assert not found["onnxruntime"].skipped
    assert {each.candidate for each in made.trajectories} == {"onnxruntime"}
