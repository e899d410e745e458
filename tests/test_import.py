"""What importing loads, and what sampling must not."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import eecompile
from tests.conftest import RECIPE, ROOT

COMPILE_TIME = ("torch", "onnx", "onnx_ir", "onnxscript", "polygraphy", "safetensors", "filelock")
PUBLIC = [
    "eecompile",
    *(f"eecompile.{name}" for name in ("compare", "compiler", "evaluate", "networks", "programs")),
    *(f"eecompile.{name}" for name in ("runtime", "serve", "store", "tune")),
]
COMMAND_LINE = ("typer", "rich", "PIL")


def without(*packages: str) -> str:
    """Code that makes packages impossible to import."""
    return f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"no {{name}} here", name=name)
sys.meta_path.insert(0, Refuse())
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_importing_the_package_loads_no_library() -> None:
    code = "import sys, eecompile; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(run(code).split())
    assert not loaded & {*COMPILE_TIME, "onnxruntime", "typer", "rich", "PIL"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    package = importlib.import_module(name)
    for public in package.__all__:
        assert getattr(package, public) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = package.missing


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_package_loads_no_library_before_a_name_of_it_is_used(name: str) -> None:
    code = f"import sys, {name}; print(*{{each.partition('.')[0] for each in sys.modules}})"
    loaded = set(run(code).split())
    assert not loaded & {*COMPILE_TIME, *COMMAND_LINE, "onnxruntime", "plotly", "numpy"}


def test_a_module_does_not_hide_a_public_name() -> None:
    """Importing a submodule sets an attribute of its package, which must not be a public name."""
    for name in PUBLIC:
        package = importlib.import_module(name)
        modules = {each.name for each in pkgutil.iter_modules(package.__path__)}
        assert not modules & set(package.__all__)


def test_sampling_works_where_the_compiler_cannot_be_imported(
    engine_sets: dict[str, Path],
) -> None:
    code = without(*COMPILE_TIME, *COMMAND_LINE) + (
        "import eecompile, eecompile.runtime\n"
        "for path in sys.argv[1:]:\n"
        "    with eecompile.Sampler.open(path) as sampler:\n"
        "        print(sampler.sample(3, steps=2).shape)\n"
        "try:\n"
        "    import torch\n"
        "except ImportError:\n"
        "    print('no torch')\n"
    )
    output = run(code, *map(str, engine_sets.values()))
    assert output.splitlines() == ["(3, 1, 28, 28)", "(3, 1, 28, 28)", "no torch"]


@pytest.mark.parametrize(
    ("command", "extra"), [(("build", "x"), "build"), (("export", str(RECIPE)), "export")]
)
def test_a_command_without_its_packages_names_the_extra(
    bundle: Path, command: tuple[str, str], extra: str
) -> None:
    name, path = command
    code = without(*COMPILE_TIME)
    code += "from eecompile.__main__ import main; main()"
    arguments = (name, str(bundle) if path == "x" else path)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"pip install 'eecompile[{extra}]'" in done.stderr


def test_the_version_needs_no_command_line() -> None:
    code = without(*COMMAND_LINE) + "from eecompile.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"eecompile {eecompile.__version__}\n")


def test_the_command_line_says_how_to_install_itself() -> None:
    code = without(*COMMAND_LINE) + "from eecompile.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'eecompile[cli]'" in done.stderr
