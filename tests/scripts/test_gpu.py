"""What only a GPU can settle: its parts go on, keep what they have, and say what is wrong.

``scripts/gpu --rehearse`` runs all parts on an emulated GPU, in CI.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eecompile.measure.machine import Gpu
from tests.conftest import ROOT

OLD = Gpu("Tesla P100", "6.0", 16 << 30, "580.1", "13.0")
NEW = Gpu("NVIDIA L4", "8.9", 24 << 30, "580.1", "13.0")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module


@pytest.fixture
def gpu(module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    made = module("gpu")
    monkeypatch.setattr(made, "gpus", lambda: [NEW])
    monkeypatch.setattr(made, "WORK", tmp_path / "work")
    return made


def test_a_part_that_fails_says_why_and_the_next_goes_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    async def in_child(part: str, seconds: float) -> dict[str, Any]:
        asked.append(part)
        return {"rows": [{"a": 1}]} | ({"failed": "it broke"} if len(asked) == 1 else {})

    monkeypatch.setattr(gpu, "_in_child", in_child)
    output = tmp_path / "gpu.json"
    with pytest.raises(SystemExit, match=r"^error: failed: plans; the file says why\.$"):
        gpu.run(["plans", "together"], output=output)
    assert "plans, 0 s: it broke\ntogether, 0 s: done" in capsys.readouterr().out
    made = json.loads(output.read_text())
    assert made["machine"]["gpu"] == "NVIDIA L4"
    assert made["parts"]["plans"]["failed"] == "it broke"
    assert made["parts"]["plans"]["rows"] == [{"a": 1}], "what it had is kept"
    gpu.run(["plans", "together", "tune"], output=output)
    assert asked == ["plans", "together", "tune", "plans"], "not what is done; what failed is last"
    with pytest.raises(SystemExit, match=r"0\.01 minutes are over; .*: plans, tune$"):
        gpu.run(["plans", "tune"], again=True, minutes=0.01, output=output)
    assert json.loads(output.read_text())["parts"].keys() == {"plans", "together", "tune"}


def test_a_part_ends_at_its_limit_and_keeps_its_rows(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "gpu.py").write_text(
        "import time\n"
        "def write_rows(part, path):\n"
        "    with open(path, 'w') as file:\n"
        '        file.write(\'{"a": 1}\\n{"a": \')\n'
        "    if part == 'long':\n"
        "        time.sleep(60)\n"
        "    raise OSError(__file__)\n"
    )
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    made = asyncio.run(gpu._in_child("long", 2))
    assert made == {"rows": [{"a": 1}], "failed": "it took longer than 2 s"}
    made = asyncio.run(gpu._in_child("broken", 60))
    assert made["rows"] == [{"a": 1}]
    assert made["failed"].endswith("OSError: ./scripts/gpu.py\n"), "and no folder of the machine"


def test_rows_are_written_as_they_are_measured(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows"

    def rows() -> Iterator[dict[str, int]]:
        yield {"a": 1}
        assert path.read_text() == '{"a": 1}\n'
        raise OSError("no more")

    monkeypatch.setitem(gpu.PARTS, "plans", gpu.PARTS["plans"]._replace(rows=rows))
    with pytest.raises(OSError, match="no more"):
        gpu.write_rows("plans", str(path))


def test_what_cannot_be_done_is_a_sentence(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="found no part 'nothing'; expected one of environment"):
        gpu.run(["nothing"])
    for found, message in (
        ([], r"found no NVIDIA GPU; expected one .* scripts/gpu --rehearse"),
        ([OLD, NEW], r"found Tesla P100, compute capability 6\.0; expected 7\.5 or newer"),
    ):
        monkeypatch.setattr(gpu, "gpus", lambda found=found: found)
        with pytest.raises(SystemExit, match=message):
            gpu.run()


def test_every_part_stands_in_the_documents(gpu: Any) -> None:
    text = (ROOT / "docs" / "gpu.md").read_text()
    for name in gpu.PARTS:
        assert f"`{re.sub('-[0-9]+$', '', name)}`" in text, name


@pytest.fixture
def wheels(
    module: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[Any, Path]:
    """The module, and a folder of one wheel; this machine is one that they are for."""
    made = module("gpu_wheels")
    monkeypatch.setattr(made, "PYTHON", sys.version_info[:2])
    monkeypatch.setattr(made, "ROOT", tmp_path)
    folder = tmp_path / "wheels"
    folder.mkdir()
    (folder / "a-1-py3-none-any.whl").write_bytes(b"a wheel")
    digest = hashlib.sha256(b"a wheel").hexdigest()
    (folder / made.LIST).write_text(json.dumps({"a-1-py3-none-any.whl": digest}))
    return made, folder


def test_a_folder_of_wheels_that_lacks_one_says_which(wheels: tuple[Any, Path]) -> None:
    made, folder = wheels
    (folder / "a-1-py3-none-any.whl").write_bytes(b"another")
    with pytest.raises(SystemExit, match=r"a-1-py3-none-any\.whl, which has other contents"):
        made.unpack(folder)
    (folder / "a-1-py3-none-any.whl").unlink()
    with pytest.raises(SystemExit, match=r"a-1-py3-none-any\.whl, which is not there; expected"):
        made.unpack(folder)
    (folder / made.LIST).unlink()
    with pytest.raises(SystemExit, match=r"found no wheels\.json .* scripts/gpu --pack made"):
        made.unpack(folder)


def test_wheels_are_for_one_python_beside_pytorch(
    wheels: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = wheels
    monkeypatch.setattr(made.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="found no PyTorch; expected it on this machine"):
        made.unpack(folder)
    monkeypatch.setattr(made, "PYTHON", (2, 7))
    with pytest.raises(SystemExit, match=r"found Python 3\..* on linux-x86_64; expected Python"):
        made.unpack(folder)


def test_what_is_packed_is_all_but_pytorch(module: Callable[[str], Any]) -> None:
    versions, left_out = module("gpu_wheels").needed()
    assert {"onnxruntime-gpu", "msgspec", "pytest", "diffusers", "torchmetrics"} <= versions.keys()
    assert not {"torch", "onnxruntime", "openvino", "eecompile"} & versions.keys()
    assert "torch" in left_out
    assert not left_out & versions.keys()
