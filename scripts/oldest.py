"""Builds and samples with the oldest versions that pyproject.toml allows, without torch.

An environment of its own holds them, within this one: it is made again when they change.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("build", "cpu", "openvino")
RUNNERS = ("pytest", "hypothesis")
TESTS = ("tests/golden/test_samples.py", "tests/store/test_files.py")


def oldest_versions() -> list[str]:
    """What the package, the extras and the tests need on this Python, each at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras[extra])]
    needed = [*map(Requirement, texts)]
    needed += [each for each in map(Requirement, extras["dev"]) if each.name in RUNNERS]
    return [
        f"{each.name}{str(each.specifier).replace('>=', '==')}"
        for each in needed
        if each.marker is None or each.marker.evaluate()
    ]


def installed(folder: Path) -> Path:
    """The interpreter of the environment, which has just these versions."""
    python, stamp, versions = folder / "bin" / "python", folder / "versions", oldest_versions()
    wanted = "\n".join(versions)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing into {folder.name}: {' '.join(versions)}", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*command, *versions], check=True)
        stamp.write_text(wanted)
    return python


def main() -> int:
    """Export with the newest versions, at the same time as the oldest are installed; test."""
    with TemporaryDirectory() as place:
        bundle = Path(place) / "bundle"
        export = [sys.executable, "-m", "tests.golden.network", str(bundle)]
        with subprocess.Popen(export, cwd=ROOT) as exporting:
            python = installed(Path(sys.prefix) / "oldest")
        if exporting.returncode:
            return exporting.returncode
        environment = os.environ | {"EECOMPILE_GOLDEN_BUNDLE": str(bundle)}
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
