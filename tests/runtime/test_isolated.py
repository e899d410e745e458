"""Engine sets with right digests, of which a library dies, hangs or fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from eecompile.errors import BackendError, UsageError
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import open_engine_set, records, write_manifest
from eecompile.store.manifest import EngineManifest
from eecompile.store.target import BatchProfile, Target
from tests.conftest import ROOT, Shared, building

Copy = Callable[[Path], Path]
Damaged = Callable[[Sequence[onnx.NodeProto]], Path]
_XOR = b"\x30\x60\x70\x02\x04\x08\x3f\x6f\x72\x74\x78\x7f"  # OpenVINO's, over a blob's graph
MOST = np.iinfo(np.int64).max


def sealed(folder: Path) -> EngineManifest:
    """The manifest, once it has the digests of whatever the folder holds now."""
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=EngineManifest)
    return write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))


@pytest.fixture
def damaged(small_sets: dict[str, Path], copied: Copy) -> Damaged:
    """An engine set whose first exit is other nodes, which make ``y`` of ``x`` [B, 1, 28, 28]."""
    folder = copied(small_sets["per_exit"])

    def damage(nodes: Sequence[onnx.NodeProto]) -> Path:
        manifest = open_engine_set(folder)
        shape, number = ["batch", 1, 28, 28], TensorProto.FLOAT
        (output,) = manifest.exits[0].outputs
        graph = helper.make_graph(
            [*nodes, helper.make_node("Identity", ["y"], [output])],
            "damaged",
            [
                helper.make_tensor_value_info("x", number, shape),
                helper.make_tensor_value_info("t", number, ["batch"]),
                helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]),
            ],
            [helper.make_tensor_value_info(output, number, shape)],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
        onnx.save(model, folder / manifest.segments[0].file)
        sealed(folder)
        return folder

    return damage


def endless() -> list[onnx.NodeProto]:
    """A loop that goes on for three hundred years."""
    flag = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Neg", ["before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            flag,
            helper.make_tensor_value_info("before", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, None),
        ],
    )
    most = helper.make_tensor("", TensorProto.INT64, [], [MOST])
    always = helper.make_tensor("", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["most"], value=most),
        helper.make_node("Constant", [], ["always"], value=always),
        helper.make_node("Loop", ["most", "always", "x"], ["y"], body=body),
    ]


def failing() -> list[onnx.NodeProto]:
    """A channel that no state has."""
    one = helper.make_tensor("", TensorProto.INT64, [1], [1])
    return [
        helper.make_node("Constant", [], ["one"], value=one),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Reshape", ["size", "one"], ["beyond"]),
        helper.make_node("Gather", ["x", "beyond"], ["y"], axis=1),
    ]


def deadly(blob: bytes) -> bytes:
    """An OpenVINO blob whose integer constants are said to have 100 million elements."""
    start = blob.index(bytes(a ^ b for a, b in zip(b"<?xml versio", _XOR, strict=True)))

    def coded(data: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(data, cycle(_XOR), strict=False))

    graph = coded(blob[start:])
    wrong, count = re.subn(
        rb'(element_type="i32" shape=")\d+(" offset="0" size="0")', rb"\g<1>100000000\2", graph
    )
    assert count
    return blob[:start] + coded(wrong)


@pytest.fixture
def deadly_set(shared: Shared, small_bundle: Path, copied: Copy) -> tuple[Path, Path]:
    """An engine set of OpenVINO, and its blob of which the library dies: for a batch of one."""
    pytest.importorskip("openvino")
    batch = BatchProfile(min=1, opt=1, max=2)
    target = Target(name="small-vino", backend="openvino", batch=batch)
    folder = copied(shared("small-vino", building(small_bundle, target)))
    (blob,) = folder.glob("*exits-2.batch-1.*.blob")
    blob.write_bytes(deadly(blob.read_bytes()))
    sealed(folder)
    return folder, blob


def test_a_library_that_dies_costs_only_the_process_of_the_check(
    deadly_set: tuple[Path, Path],
) -> None:
    folder, blob = deadly_set
    code = (
        "import sys, eecompile; eecompile.Sampler.open(sys.argv[1]).sample(1, steps=1, schedule=2)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], check=False, cwd=ROOT)
    if done.returncode >= 0:
        pytest.skip("this OpenVINO survives the blob")
    message = (
        f"found openvino dying of {signal.Signals(-done.returncode).name} while opening {blob}; "
        "expected an engine set that can be opened and evaluated; build it again"
    )
    with pytest.raises(BackendError, match=re.escape(message)):
        Sampler.open(folder, check="isolated")


def test_a_library_that_hangs_is_ended(damaged: Damaged) -> None:
    folder = damaged(endless())
    started, others = time.monotonic(), children()
    with pytest.raises(BackendError, match=r"onnxruntime hanging, for 3 s, while .*more seconds"):
        Sampler.open(folder, check="isolated", check_seconds=3)
    assert time.monotonic() - started < 6
    assert children() == others


def test_what_a_library_raises_names_the_exit(damaged: Damaged) -> None:
    with pytest.raises(BackendError, match=r"failing with \w+: .* exit 1 at batch size 1 \(segm"):
        Sampler.open(damaged(failing()), check="isolated")


def test_a_graph_of_garbage_is_refused_as_without_the_check(
    small_sets: dict[str, Path], copied: Copy
) -> None:
    folder = copied(small_sets["per_exit"])
    file = open_engine_set(folder).segments[1].file
    (folder / file).write_bytes(b"garbage" * 1000)
    sealed(folder)
    said = []
    for check in (None, "isolated"):
        with pytest.raises(BackendError, match=file) as caught:
            Sampler.open(folder, check=check)  # type: ignore[arg-type]
        said.append(str(caught.value).replace(str(folder), ""))
    assert said[0] == said[1]


@pytest.mark.skipif(sys.platform != "linux", reason="finds its children as Linux shows them")
@pytest.mark.parametrize("how", [signal.SIGABRT, signal.SIGKILL])
def test_whatever_signal_ends_the_process_is_named(damaged: Damaged, how: signal.Signals) -> None:
    folder, others = damaged(endless()), children()
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(Sampler.open, folder, check="isolated")
        while not (started := [child for child in children() if child not in others]):
            time.sleep(0.01)
        os.kill(started[0], how)
        with pytest.raises(BackendError, match=how.name) as caught:
            opening.result()
    assert ("free memory" in caught.value.remedy) == (how == signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a child dies with its parent")
def test_the_process_of_a_check_dies_with_its_parent(damaged: Damaged) -> None:
    code = "import sys, eecompile; eecompile.Sampler.open(sys.argv[1], check='isolated')"
    with subprocess.Popen([sys.executable, "-c", code, damaged(endless())], cwd=ROOT) as process:
        while not (started := children(process.pid)):
            time.sleep(0.01)
        process.kill()
    deadline = time.monotonic() + 60  # where it has just begun to start
    while running(started[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_checked_sets_open_in_threads_and_sample_the_same(small_sets: dict[str, Path]) -> None:
    path = small_sets["per_exit"]
    with Sampler.open(path) as sampler:
        expected = sampler.sample(2, steps=2)

    def sample(_: int) -> object:
        with Sampler.open(path, check="isolated", threads=1) as sampler:
            return sampler.sample(2, steps=2)

    with ThreadPoolExecutor(3) as pool:
        for samples in pool.map(sample, range(3)):
            np.testing.assert_array_equal(samples, expected)


def test_sets_that_are_opened_together_are_checked_together(
    small_sets: dict[str, Path], damaged: Damaged
) -> None:
    both = small_sets["chained"], damaged(failing())
    Sampler.open(small_sets["chained"], small_sets["per_exit"], check="isolated").close()
    with pytest.raises(BackendError, match=re.escape(f"of {both[1]}")):
        Sampler.open(*both, check="isolated")


def test_a_check_needs_no_package_but_the_runtime_s(
    small_sets: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("torch", "onnx", "onnx_ir", "typer", "rich", "filelock", "cryptography"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name} here')")
    code = (
        "import sys, eecompile\n"
        "with eecompile.Sampler.open(sys.argv[1], check='isolated') as sampler:\n"
        "    print(sampler.sample(1, steps=1).shape)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code, small_sets["per_exit"]],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout == "(1, 1, 28, 28)\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"check": "isolate"}, "found check='isolate'; expected 'isolated', or None"),
        ({"check": "isolated", "check_seconds": 0}, "found a limit of 0 s"),
        ({"check": "isolated", "check_seconds": float("nan")}, "found a limit of nan s"),
    ],
)
def test_wrong_arguments_are_refused(
    small_sets: dict[str, Path], arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        Sampler.open(small_sets["per_exit"], **arguments)  # type: ignore[arg-type]


def test_a_program_that_is_no_interpreter_starts_no_second_one(
    small_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # as PyInstaller does
    with pytest.raises(BackendError, match=r"no Python interpreter.*inspect ENGINES --check"):
        Sampler.open(small_sets["per_exit"], check="isolated")
    monkeypatch.undo()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BackendError, match="No such file or directory"):
        Sampler.open(small_sets["per_exit"], check="isolated")


def children(parent: int | None = None) -> list[int]:
    """The processes that a process has started, and not yet waited for."""
    tasks = Path(f"/proc/{parent or os.getpid()}/task")
    found = [path / "children" for path in tasks.iterdir()] if tasks.exists() else []
    return [int(number) for path in found for number in path.read_text().split()]


def running(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
