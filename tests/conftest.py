"""What the whole run shares: the shipped network and a small one, exported and built once.

Workers of pytest-xdist share the folders: the first that asks makes one, under a lock.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# One thread a process, as there is one worker a core; read when a library is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

from eecompile.runtime.sampler import Sampler

# How long an example takes says nothing on a machine that does other things, too.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

Beside = Callable[[str], str]
Shared = Callable[[str, Callable[[Path], object]], Path]
ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "export" / "fashion-dit.toml"
TARGETS = {
    "per_exit": ROOT / "engines" / "cpu.toml",
    "chained": ROOT / "engines" / "cpu-chained.toml",
}
SMALL_EXITS = (1, 2, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests come first, so that no worker is left with one at the end.

    Those marked ``posix`` are skipped where signals, links and limits are others.
    """
    if os.name != "posix":
        for item in items:
            if item.get_closest_marker("posix"):
                item.add_marker(pytest.mark.skip(reason="needs POSIX"))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """A test marked ``alone`` waits until the other workers' tests are done, and they wait for it.

    The others hold one lock together; it holds that lock alone, and another meanwhile, at
    which they queue: or it might never get its turn.
    """
    if fcntl is None or not hasattr(item.config, "workerinput"):
        return (yield)
    folder = _shared_folder(item.config)
    alone = item.get_closest_marker("alone") is not None
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with (
        _locked(folder / "queue.lock", fcntl.LOCK_EX) as leave,
        _locked(folder / "running.lock", how),
    ):
        if not alone:
            leave()
        return (yield)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[Callable[[], None]]:
    """Hold a lock, or give it back early by what this yields."""
    assert fcntl is not None
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield lambda: fcntl.flock(file, fcntl.LOCK_UN)


def _shared_folder(config: pytest.Config) -> Path:
    """The run's own folder of temporary files, which its workers share."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return base.parent if hasattr(config, "workerinput") else base


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """A worker's sessions of ONNX Runtime take one thread where a test asks for no number.

    There is no environment variable for that.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    import onnxruntime

    kind = onnxruntime.InferenceSession
    genuine = kind.__init__

    @functools.wraps(genuine)
    def opened(
        self: Any, path_or_bytes: Any, sess_options: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        options = sess_options or onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        genuine(self, path_or_bytes, options, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__init__", opened)
        yield


@pytest.fixture(scope="session")
def shared(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Shared:
    """Makes a folder by its name, once for all workers; it is not to be written to.

    What fails while it is made is made again by the next test that asks for it.
    """
    root = _shared_folder(pytestconfig) / "shared"
    locks = _shared_folder(pytestconfig) / "locks"
    for folder in (root, locks):
        folder.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = root / name, locks / f"{name}.made"
        with FileLock(locks / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                made.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def bundle(shared: Shared) -> Path:
    """A bundle of the shipped network; not to be written to."""
    return shared("bundle", exporting(RECIPE))


@pytest.fixture(scope="session")
def engine_sets(shared: Shared, bundle: Path) -> dict[str, Path]:
    """An engine set a layout, beside ``bundle``; not to be written to."""
    return {name: shared(name, building(bundle, target)) for name, target in TARGETS.items()}


@pytest.fixture(scope="session")
def other_exits(shared: Shared) -> Callable[..., Path]:
    """The bundle of the shipped network with other exits; not to be written to."""

    def made(*exits: int) -> Path:
        name = "-".join(map(str, exits))
        return shared(f"exits-{name}", exporting(RECIPE, exits=exits))

    return made


@pytest.fixture(scope="session")
def openvino_set(shared: Shared, bundle: Path) -> Path:
    """The shipped network for OpenVINO, by the target ``vino``; not to be written to."""
    pytest.importorskip("openvino")
    from eecompile.store.target import Target

    return shared("vino", building(bundle, Target(name="vino", backend="openvino")))


@pytest.fixture(scope="session")
def rtx_set(shared: Shared, bundle: Path) -> Callable[[str], Path]:
    """The shipped network's plans for TensorRT-RTX by precision; not to be written to."""

    def made(precision: str) -> Path:
        pytest.importorskip("tensorrt_rtx")
        target = ROOT / "engines" / f"rtx-{precision}.toml"
        return shared(f"rtx-{precision}", building(bundle, target))

    return made


@pytest.fixture(scope="session")
def small_recipe(shared: Shared) -> Path:
    """A recipe as the shipped network's, of 4 narrow blocks with exits 1, 2 and 4.

    Its weights, small.safetensors beside it, are random.
    """
    return shared("small-recipe", write_small) / "small.toml"


@pytest.fixture(scope="session")
def small_bundle(shared: Shared, small_recipe: Path) -> Path:
    """A bundle of ``small_recipe``; not to be written to."""
    return shared("small-bundle", exporting(small_recipe))


@pytest.fixture(scope="session")
def small_sets(shared: Shared, small_bundle: Path) -> dict[str, Path]:
    """An engine set a layout of ``small_bundle``; not to be written to."""
    return {
        name: shared(f"small-{name}", building(small_bundle, target))
        for name, target in TARGETS.items()
    }


@pytest.fixture(scope="session")
def own_bundle(shared: Shared, small_bundle: Path) -> Path:
    """A copy of ``small_bundle``, beside which what it is calibrated with may be kept."""

    def make(folder: Path) -> None:
        folder.mkdir()
        shutil.copytree(small_bundle, folder / "bundle")

    return shared("own", make) / "bundle"


@pytest.fixture(scope="session")
def int8_set(shared: Shared, own_bundle: Path) -> Path:
    """The small network in INT8 for ONNX Runtime, by ``cpu-int8-ort``; not to be written to.

    Of so narrow a network little else holds the target's own tolerance.
    """
    from msgspec.structs import replace

    from eecompile.store.target import Tolerance, load_target

    target = load_target(ROOT / "engines" / "cpu-int8-ort.toml")
    wide = replace(target, tolerance=Tolerance(absolute=1e-3, relative=0.15))
    return shared("small-int8", building(own_bundle, wide))


def write_small(folder: Path) -> None:
    """``small.toml`` and its weights, in a new folder."""
    import torch
    from safetensors.torch import save_file

    from eecompile.networks.dit import DiT
    from eecompile.recipe import load_recipe

    folder.mkdir()
    path = folder / "small.toml"
    path.write_text(small_text())
    torch.manual_seed(0)
    network = DiT(exits=SMALL_EXITS, **load_recipe(path).network.options)
    for parameter in network.parameters():  # adaLN-Zero starts at zero: every exit would be equal
        torch.nn.init.normal_(parameter, std=0.1)
    save_file(network.state_dict(), folder / "small.safetensors")


def small_text() -> str:
    """The shipped network's recipe, made small."""
    text = RECIPE.read_text()
    text = re.sub(r"half = \[.*?\n\]\nase = .*?\n", "", text, flags=re.DOTALL)
    for old, new in (
        ("width = 128", "width = 16"),
        ("depth = 12", "depth = 4"),
        ("exits = [3, 6, 9, 12]", f"exits = {list(SMALL_EXITS)}"),
        ("eecompile_fashion_dit:fashion-dit.safetensors", "small.safetensors"),
        ("balanced = [9, 12, 12, 12, 9, 9, 9, 6, 6, 3]", "balanced = [2, 4, 4, 2, 1]"),
        ("fast = [12, 12, 9, 9, 6, 6, 3, 3, 3, 3]", "fast = [4, 2, 1, 1]"),
        ('schedule = "half"', 'schedule = "balanced"'),
    ):
        text, count = re.subn(re.escape(old), new, text)
        assert count == 1, old
    return text


def exporting(recipe: Path, **options: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        from eecompile.compiler.export import bundle_from_recipe

        return bundle_from_recipe(recipe, folder, **options)

    return make


def building(bundle: Path, target: Any) -> Callable[[Path], object]:
    def make(folder: Path) -> object:
        from eecompile.compiler.build import engine_set_from_bundle

        return engine_set_from_bundle(bundle, target, folder)

    return make


@pytest.fixture(scope="session")
def network(shared: Shared) -> Callable[[str], Path]:
    """The recipe, weights and bundle of a small network by its name; not to be written to."""

    def made(name: str) -> Path:
        def make(folder: Path) -> None:
            from eecompile.compiler.export import bundle_from_recipe
            from tests.compiler.small_networks import write

            folder.mkdir()
            bundle_from_recipe(write(name, folder), folder / "bundle")

        return shared(f"network-{name}".replace(" ", "-"), make)

    return made


@pytest.fixture(scope="session")
def network_sets(shared: Shared, network: Callable[[str], Path]) -> Callable[[str], Path]:
    """The same with an engine set a layout, per_exit and chained; not to be written to."""

    def made(name: str) -> Path:
        folder = network(name)

        def make(marker: Path) -> None:
            for layout, target in TARGETS.items():
                building(folder / "bundle", target)(folder / layout)
            marker.mkdir()

        shared(f"{folder.name}-sets", make)
        return folder

    return made


@pytest.fixture(params=["per_exit", "chained"])
def sampler(request: pytest.FixtureRequest, engine_sets: dict[str, Path]) -> Sampler:
    """A sampler of the shipped network, in each layout."""
    return Sampler.open(engine_sets[request.param])


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a folder to where the test may damage it."""

    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / folder.name))

    return copy


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    """Writes a module beside the recipe, and says what it is called."""
    name = "written_beside_the_recipe"

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    yield write
    sys.modules.pop(name, None)
