"""What an engine, a sampler or a trajectory can do is declared: nobody asks with getattr."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import eecompile

PACKAGE = Path(eecompile.__file__).parent
FOLDERS = ("runtime", "tune", "compare", "evaluate", "cli")
ALLOWED = {
    ("runtime/engines/tensorrt.py", "module"): "a folder of stubs is imported like the library",
    ("runtime/engines/tensorrt.py", "each"): "only contexts of TensorRT-RTX can be asked",
    ("runtime/engines/tensorrt.py", "self._runtime"): "only the runtime of TensorRT-RTX can",
    ("runtime/engines/onnxruntime_cuda.py", "runtime"): "not every build of onnxruntime has it",
    ("runtime/cuda/device.py", "buffer"): "newer versions of cuda.core have it",
    ("compare/trained.py", "network"): "torch modules may predict from one exit directly",
    ("cli/app.py", "error"): "exceptions of whichever option parser typer brings",
}


def probes(source: str) -> Iterator[str]:
    """What getattr or hasattr is called on."""
    for node in ast.walk(ast.parse(source)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("getattr", "hasattr"):
            yield ast.unparse(node.args[0])


def test_only_objects_of_libraries_are_probed() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), what)
        for folder in FOLDERS
        for path in (PACKAGE / folder).rglob("*.py")
        for what in probes(path.read_text())
    }
    assert found - ALLOWED.keys() == set(), "declare it in runtime/protocol.py, with a default"
    assert ALLOWED.keys() - found == set(), "these are probed no longer: take them off the list"


def test_a_probe_is_found_wherever_it_stands() -> None:
    source = "def f(engine):\n    return [x for x in (1,) if not hasattr(engine.first, 'bind')]"
    assert list(probes(source)) == ["engine.first"]
