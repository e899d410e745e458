"""What doctor finds here, and what it makes of libraries that crash, hang or talk nonsense."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from eecompile.backends import BACKENDS
from eecompile.cli import main
from eecompile.doctor import examine as doctor
from eecompile.doctor.children import ask
from eecompile.doctor.examine import BackendStatus, MachineReport, Tool, examine
from eecompile.doctor.packages import Conflict, conflicts
from eecompile.doctor.packages import installed as installed_packages
from eecompile.doctor.probes import YES, Answer, Finding
from eecompile.doctor.tables import doctor_parts
from eecompile.measure.machine import Cpu, Gpu, cpu
from eecompile.show.terminal import rendered

NO = Answer(False, "a reason", "a remedy")
TWO = (
    Gpu("NVIDIA RTX A4000", "8.6", 16376 << 20, "580.95.05", "13.0"),
    Gpu("NVIDIA RTX PRO 6000 Blackwell, Server Edition", "12.0", 97887 << 20, "580.95.05", "13.0"),
)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def shown(report: MachineReport) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(rendered(*doctor_parts(report)))
    return capture.get()


@pytest.fixture(scope="module")
def report() -> MachineReport:
    """What doctor really finds here, as JSON from a process of its own."""
    done = subprocess.run([sys.executable, "-m", "eecompile.doctor"], capture_output=True)
    report = msgspec.json.decode(done.stdout, type=MachineReport)
    assert done.returncode == (0 if report.usable else 1), done.stderr
    return report


@pytest.fixture(scope="module")
def backends(report: MachineReport) -> dict[str, BackendStatus]:
    return {backend.name: backend for backend in report.backends}


def test_every_backend_answers(backends: dict[str, BackendStatus]) -> None:
    assert list(backends) == list(BACKENDS)
    for backend in backends.values():
        for answer in (backend.builds, backend.runs):
            assert answer.yes == (not answer.reason) == (not answer.remedy)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("onnxruntime", "onnxruntime", "eecompile[cpu]"),
        ("openvino", "openvino", "eecompile[openvino]"),
    ],
)
def test_a_backend_for_cpus_runs_where_it_is_installed(
    backends: dict[str, BackendStatus], name: str, module: str, extra: str
) -> None:
    backend = backends[name]
    assert backend.runs.yes == installed(module)
    if backend.runs.yes:
        assert backend.version == metadata.version(module)
        assert backend.detail
    else:
        assert backend.runs.reason == f"{module} is not installed"
        assert backend.runs.remedy == f"pip install '{extra}'"


def test_the_speed_of_precisions_is_told_where_openvino_measures_it(report: MachineReport) -> None:
    assert bool(report.speeds) == installed("openvino")


def test_tensorrt_rtx_builds_without_a_gpu_and_does_not_run(
    report: MachineReport, backends: dict[str, BackendStatus]
) -> None:
    rtx = backends["tensorrt-rtx"]
    assert rtx.builds.yes == installed("tensorrt_rtx")
    if not installed("tensorrt_rtx"):
        assert rtx.builds.remedy == "pip install 'eecompile[rtx]'"
    elif not report.gpus:
        assert rtx.runs == Answer(False, "no NVIDIA GPU", doctor._NO_GPU)


def test_nothing_runs_on_a_gpu_that_is_not_there(
    report: MachineReport, backends: dict[str, BackendStatus]
) -> None:
    assert bool(report.gpus) == (not report.no_gpu)
    for name in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "tensorrt-lean"):
        if not report.gpus:
            assert backends[name].runs.reason.endswith("no NVIDIA GPU")


def test_tools_have_the_versions_that_are_installed(report: MachineReport) -> None:
    for tool in report.tools:
        if tool.works.yes:
            assert tool.version == metadata.version(tool.name)
        else:
            assert tool.works.remedy.startswith("pip install ")


def test_the_machine_is_named(report: MachineReport) -> None:
    assert report.cpu == cpu()
    assert report.cpu.model
    assert report.cpu.cores >= 1
    assert report.python in sys.version


def test_the_report_fits_80_columns(report: MachineReport) -> None:
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    for backend in report.backends:
        assert backend.name in text


def test_a_machine_that_works_has_nothing_to_do(report: MachineReport) -> None:
    """What needs a GPU where there is none, and what nobody installed, is no fault."""
    fine = BackendStatus("onnxruntime", "onnxruntime", "1.31.1", YES, YES, "")
    no_gpu = Answer(False, "no NVIDIA GPU", "use a machine with an NVIDIA GPU and its driver")
    missing = Answer(False, "not installed", "pip install 'eecompile[openvino]'")
    backends = (
        fine,
        BackendStatus("tensorrt-rtx", "tensorrt-rtx", "1.7", YES, no_gpu, ""),
        BackendStatus("openvino", "openvino", "", missing, missing, ""),
    )
    healthy = msgspec.structs.replace(report, gpus=(), backends=backends, tools=(), conflicts=())
    text = " ".join(shown(healthy).split())
    assert "what to do" not in text
    assert text.endswith(
        "nothing to do: onnxruntime runs here what could be added openvino pip install "
        "'eecompile[openvino]' on a machine with an NVIDIA GPU: tensorrt-rtx"
    )
    idle = msgspec.structs.replace(healthy, backends=backends[1:])
    assert "no NVIDIA GPU use a machine" in " ".join(shown(idle).split())


def test_the_worst_report_fits_80_columns_and_hides_nothing() -> None:
    wordy = Answer(False, "[E:lib] cannot open [x]: " + "reason " * 25 + "end", "pip 'a[b]'")
    text = shown(
        MachineReport(
            eecompile="0.1.0",
            python="3.11.7",
            system="Linux",
            cpu=Cpu("[cpu]", 64, ("AMX",)),
            gpus=(*TWO, Gpu("NVIDIA Thor", "", 0, "", "")),
            no_gpu="",
            backends=(
                BackendStatus(
                    "onnxruntime", "onnxruntime", "1.31.1.dev20261122", wordy, NO, "x " * 60
                ),
                BackendStatus("tensorrt-rtx", "tensorrt-rtx", "", YES, wordy, ""),
                BackendStatus(
                    "tensorrt", "tensorrt", "", NO, Answer(False, "a reason; more", "r"), ""
                ),
            ),
            tools=(Tool("torch", "", "export", NO), Tool("onnx", "", "export", NO)),
            conflicts=(Conflict("conflict", "[a] and b", "uninstall [b]"),),
        )
    )
    assert max(map(len, text.splitlines())) <= 80
    words = " ".join(text.split())
    for part in (
        "[cpu], 64 cores",
        "GPU 1 NVIDIA RTX PRO 6000 Blackwell, Server Edition, compute capability 12.0, 95.6 GiB",
        "NVIDIA Thor, compute capability unknown, memory of the host",
        "conflict: [a] and b uninstall [b]",
        "onnxruntime does not build: [E:lib] cannot open [x]:",
        "end pip 'a[b]' onnxruntime does not run: a reason a remedy",
        "tensorrt-rtx does not run: [E:lib]",
        "tensorrt does not build or run: a reason; more",
        "what could be added torch (export), onnx (export) a remedy",
    ):
        assert part in words


# Child processes


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os.abort()", ["crashed with SIGABRT"]),
        ("import ctypes; ctypes.string_at(0)", ["crashed with SIGSEGV"]),
        ("raise RuntimeError('no such thing')", ["status 1", "RuntimeError: no such thing"]),
        ("print('hello'); print('x' * 10**6)", ["no answer but 'hello xxxx"]),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)))", ["no answer but"]),
        ("print('{\"works\": 3}')", ["no answer but"]),
        ("", ["no answer but ''"]),
    ],
)
def test_a_child_that_fails_is_a_reason(code: str, words: list[str]) -> None:
    finding = ask({"it": python(code)}, 30)["it"]
    assert finding.works == finding.builds
    assert not finding.works.yes
    assert len(finding.works.reason) < 300
    for word in words:
        assert word in finding.works.reason


@pytest.mark.posix
def test_a_child_that_hangs_is_ended_and_the_others_answer(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    code = f"import os, signal, time; open({str(number)!r}, 'w').write(str(os.getpid()))"
    stubborn = "; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    good = msgspec.json.encode(Finding(YES, YES, "1.0")).decode()
    before = time.monotonic()
    findings = ask({"hangs": python(code + stubborn), "answers": python(f"print({good!r})")}, 3)
    assert time.monotonic() - before < 20
    assert "hangs" in findings["hangs"].works.reason
    assert findings["answers"] == Finding(YES, YES, "1.0")
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), 0)


def test_what_a_library_prints_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = "import os; print('hello'); os.write(1, b'{}')"
    (tmp_path / "safetensors.py").write_text(noise)
    (tmp_path / "onnx.py").write_text("raise ImportError('libx.so: no such file')")
    monkeypatch.syspath_prepend(tmp_path)  # a child sees what this process does
    findings = ask({name: doctor.command(name) for name in ("safetensors", "onnx")}, 30)
    assert findings["safetensors"].works.yes
    assert findings["onnx"].works.reason == "ImportError: libx.so: no such file"


def test_a_backend_that_crashes_costs_its_own_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    good = msgspec.json.encode(Finding(YES, YES, "1.0")).decode()

    def command(probe: str) -> list[str]:
        return python("import os; os.abort()" if probe == "onnxruntime" else f"print({good!r})")

    monkeypatch.setattr(doctor, "command", command)
    monkeypatch.setattr(doctor, "_importable", lambda module: module != "openvino")
    report = examine(timeout=30)
    found = {backend.name: backend for backend in report.backends}
    crashed, absent, rtx = (found[name] for name in ("onnxruntime", "openvino", "tensorrt-rtx"))
    assert crashed.runs.reason == "it crashed with SIGABRT"
    assert crashed.runs.remedy == "pip install --force-reinstall onnxruntime"
    assert absent.builds == Answer(
        False, "openvino is not installed", "pip install 'eecompile[openvino]'"
    )
    assert rtx.builds.reason == "the compiler lacks onnxruntime"
    assert "onnxruntime" not in report.usable


def test_a_folder_that_is_no_package_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt_lean").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("tensorrt_lean").origin is None:  # type: ignore[union-attr]
        assert not doctor._importable("tensorrt_lean")
    assert doctor._importable("msgspec")


@pytest.mark.parametrize(("no_gpu", "remedy"), [(True, "a machine"), (False, "the NVIDIA driver")])
def test_the_remedy_depends_on_whether_there_is_a_gpu(no_gpu: bool, remedy: str) -> None:
    library = BACKENDS["tensorrt"]
    failed = Answer(False, "cudaError 35: driver is too old")
    backend = doctor._status(library, Finding(failed, failed, "11.4"), (), no_gpu)
    assert remedy in backend.runs.remedy
    assert backend.runs.reason == ("no NVIDIA GPU" if no_gpu else failed.reason)
    assert backend.builds.reason == failed.reason


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_backend_for_gpus_runs_where_cuda_core_does(name: str) -> None:
    library = BACKENDS[name]
    fine = Finding(YES, YES, "1.0")
    assert doctor._status(library, fine, (), no_gpu=False, core=YES).runs == YES
    missing = Answer(False, "not installed", "pip install 'eecompile[cuda]'")
    found = doctor._status(library, fine, (), no_gpu=False, core=missing)
    assert found.builds == YES
    assert found.runs.reason == "cuda-core, which runs it: not installed"
    assert found.runs.remedy == missing.remedy


def test_cuda_core_needs_no_gpu_to_be_there(report: MachineReport) -> None:
    tool = next(tool for tool in report.tools if tool.name == "cuda-core")
    assert tool.purpose == "run on a GPU"
    if installed("cuda") and installed("cuda.core"):
        assert tool.works.yes
        assert tool.version == metadata.version("cuda-core")
    else:
        assert tool.works.remedy == "pip install 'eecompile[cuda]'"


# Conflicts


class FakeDistribution:
    def __init__(self, name: str | None, version: str, requires: list[str] | None = None) -> None:
        self.metadata = {} if name is None else {"Name": name}
        self.version = version
        self.requires = requires


REQUIRES = [
    "numpy>=1.26",
    "msgspec>=0.19",
    'torch>=2.9; extra == "export"',
    'torch>=2.9; extra == "evaluate"',
    'onnxruntime-gpu[cuda,cudnn]>=1.23; extra == "gpu"',
    'eecompile[build]; extra == "export"',
    'efficientnet-lite-pytorch==0.1.0; extra == "evaluate"',
    'pillow>=10.1; extra == "cli"',
]


def found(
    monkeypatch: pytest.MonkeyPatch, *packages: tuple[str, str], gpus: Sequence[Gpu] = ()
) -> tuple[Conflict, ...]:
    distributions = [
        FakeDistribution("eecompile", "0.1.0", REQUIRES),
        FakeDistribution(None, ""),  # a broken installation
        *(FakeDistribution(*package) for package in packages),
    ]
    monkeypatch.setattr(metadata, "distributions", lambda: distributions)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return conflicts(installed_packages(), gpus)


def test_what_fits_together_is_no_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = (
        ("numpy", "2.4.6"),
        ("msgspec", "0.19"),
        ("torch", "2.13.0+cpu"),
        ("onnxruntime_gpu", "1.31.1"),
        ("tensorrt_rtx_cu13", "1.7.1.116"),
        ("tensorrt_rtx", "1.7.1.116"),
        ("polygraphy", "0.53.6"),
    )
    assert found(monkeypatch, *fitting, gpus=TWO) == ()


def test_packages_with_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, ("onnxruntime", "1.31.1"), ("onnxruntime_gpu", "1.31.1")) == (
        Conflict(
            "conflict",
            "onnxruntime and onnxruntime-gpu overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime-gpu",
        ),
    )
    two = found(monkeypatch, ("tensorrt_cu12", "11.4"), ("tensorrt-cu13", "11.4"))
    assert [conflict.found for conflict in two] == [
        "tensorrt-cu12 and tensorrt-cu13 overwrite each other's files"
    ]


def test_packages_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = (("torch", "2.8.1+cu126"), ("numpy", "1.25.9"), ("MsgSpec", "0.18.6"), ("pillow", "10.1"))
    assert [conflict.found for conflict in found(monkeypatch, *old)] == [
        "numpy 1.25.9, where eecompile needs 1.26 or newer",
        "msgspec 0.18.6, where eecompile needs 0.19 or newer",
        "torch 2.8.1+cu126, where eecompile needs 2.9 or newer",
    ]
    (gpu,) = found(monkeypatch, ("onnxruntime-gpu", "1.22"))
    assert gpu.remedy == "pip install 'onnxruntime-gpu>=1.23'"


@pytest.mark.parametrize("version", ["2.9", "2.9.0", "2.9.0a0+git", "2.10rc1", "3"])
def test_versions_that_are_new_enough(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    assert found(monkeypatch, ("torch", version)) == ()


def test_the_copy_that_is_imported_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(monkeypatch, ("torch", "2.13"), ("torch", "1.0")) == ()


def test_a_package_for_a_newer_cuda_than_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    old = [msgspec.structs.replace(gpu, cuda="12.4") for gpu in TWO]
    packages = (("tensorrt-lean-cu12", "11.4"), ("tensorrt_rtx_cu13", "1.7"))
    (conflict,) = found(monkeypatch, *packages, gpus=old)
    assert (
        conflict.found == "tensorrt-rtx-cu13 is for CUDA 13; the NVIDIA driver supports CUDA 12.4"
    )
    assert found(monkeypatch, *packages) == ()


def test_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("tensorrt", "tensorrt_rtx", "polygraphy")
    (note,) = found(monkeypatch, *((name, "1.0") for name in names))
    assert note.kind == "note"
    assert "POLYGRAPHY_USE_TENSORRT_RTX=1" in note.remedy
    found(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (note,) = conflicts(installed_packages(), TWO)
    assert "CUDA_VISIBLE_DEVICES is '1'" in note.found


# The command


def run(monkeypatch: pytest.MonkeyPatch, report: MachineReport, *options: str) -> int:
    monkeypatch.setattr(doctor, "examine", lambda: report)
    monkeypatch.setattr(sys, "argv", ["eecompile", "doctor", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_the_command_prints_tables_or_json(
    report: MachineReport,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert run(monkeypatch, report, "--json") == (0 if report.usable else 1)
    assert msgspec.json.decode(capfdbinary.readouterr().out, type=MachineReport) == report


def test_the_command_fails_with_a_sentence_where_nothing_runs(
    report: MachineReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none = [msgspec.structs.replace(backend, runs=NO) for backend in report.backends]
    assert run(monkeypatch, msgspec.structs.replace(report, backends=tuple(none))) == 1
    captured = capsys.readouterr()
    assert "backends" in captured.out
    sentence = "found no backend that can run here; expected at least one; a remedy."
    assert sentence in " ".join(captured.err.split())


def test_a_working_backend_is_success(
    report: MachineReport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = msgspec.structs.replace(report.backends[0], runs=YES)
    assert run(monkeypatch, msgspec.structs.replace(report, backends=(first,))) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_int8_is_advised_against_without_its_instructions() -> None:
    def told(*instructions: str, **speeds: float) -> str:
        report = MachineReport(
            eecompile="0",
            python="3",
            system="Linux",
            cpu=Cpu("Example", 2, instructions),
            gpus=(),
            no_gpu="none",
            backends=(),
            tools=(),
            conflicts=(),
            speeds=speeds,
        )
        return " ".join(shown(report).split())

    assert "INT8 not advised" in told("AVX2", "AVX-512")
    assert "INT8" not in told("AVX2", "AVX-VNNI")
    measured = told("AVX2", BF16=0.5542, INT8=1.812)
    assert "speed of matrix products over FP32's: BF16 0.55, INT8 1.8" in measured
    assert "INT8 not advised" in measured
