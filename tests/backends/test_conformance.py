"""What every backend promises, asked of each that is installed here, in each of its layouts.

A backend takes part by its record in :mod:`eecompile.backends`. Those for NVIDIA GPUs build here
where they can, and run where there is a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eecompile.backends import BACKENDS, TARGET_BACKENDS, Backend
from eecompile.compiler.build import engine_set_from_bundle, planned_build
from eecompile.compiler.segments import BatchBuilder
from eecompile.doctor.probes import PROBES
from eecompile.errors import BackendError, DigestError, UsageError
from eecompile.measure.machine import gpus
from eecompile.runtime.opening import open_engine
from eecompile.runtime.protocol import Engine
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import MANIFEST, open_bundle, open_engine_set, records, write_manifest
from eecompile.store.target import BatchProfile, Target
from tests.backends.conftest import Built
from tests.backends.network import CLASSES, EXITS, WIDTH, predict
from tests.test_import import COMMAND_LINE, COMPILE_TIME, run, without

LARGEST = 4
CLOSE = 2e-5  # of values around 1, where sums are taken in another order


def installed(backend: Backend) -> bool:
    spec = importlib.util.find_spec(backend.library)
    return spec is not None and spec.origin is not None  # a folder of stubs has none


def target(name: str, layout: str) -> Target:
    profile = BatchProfile(min=1, opt=2, max=LARGEST)
    return Target(name=f"{name}-{layout}", backend=name, layout=layout, batch=profile)  # type: ignore[arg-type]


def cases(*names: str) -> pytest.MarkDecorator:
    """Targets of these backends, in each layout."""
    found = [target(name, layout) for name in names for layout in BACKENDS[name].layouts]
    return pytest.mark.parametrize("wanted", found, ids=lambda case: case.name)


HERE = [name for name in TARGET_BACKENDS if installed(BACKENDS[name])]
RUNNING = [name for name in HERE if gpus() or not BACKENDS[name].gpu]
builds, runs = cases(*HERE), cases(*RUNNING)
each = pytest.mark.parametrize("name", HERE)


def inputs(batch: int, seed: int) -> tuple[Any, Any, dict[str, Any]]:
    draws = np.random.default_rng(seed)
    x = draws.standard_normal((batch, WIDTH), np.float32)
    t = draws.integers(0, 1000, batch).astype(np.float32)
    return x, t, {"label": draws.integers(0, CLASSES, batch)}


def evaluate(engine: Engine, depth: int, batch: int, seed: int) -> Any:
    (output,) = engine.evaluate(depth, *inputs(batch, seed))
    return output


def expected(depth: int, batch: int, seed: int) -> Any:
    x, t, given = inputs(batch, seed)
    return predict(depth, x, t, given["label"])


# Building


@builds
def test_every_weight_is_stored_once(small: Path, built: Built, wanted: Target) -> None:
    manifest = open_engine_set(built(wanted))
    deepest = open_bundle(small).exits[-1].bytes
    stored = sum(record.bytes for record in manifest.files)
    module = importlib.import_module(BACKENDS[wanted.backend].build)
    if wanted.layout == "chained":
        assert sum(segment.bytes for segment in manifest.segments) < 1.01 * deepest
    if wanted.layout == "chained" or isinstance(module, BatchBuilder):
        assert stored < 1.3 * deepest  # three exits that share nothing would take twice as much


@builds
def test_an_unchanged_build_is_up_to_date(small: Path, built: Built, wanted: Target) -> None:
    folder = built(wanted)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert engine_set_from_bundle(small, wanted, folder).up_to_date
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert planned_build(small, wanted, folder).reasons == ()


@builds
def test_a_manifest_says_what_it_was_built_by_and_for(built: Built, wanted: Target) -> None:
    manifest = open_engine_set(built(wanted))
    assert manifest.target == wanted
    assert BACKENDS[wanted.backend].library in manifest.versions
    assert [plan.depth for plan in manifest.exits] == list(EXITS)
    assert all(plan.relative_error < 1e-4 for plan in manifest.exits)
    shared = [segment for segment in manifest.segments if len(segment.exits) > 1]
    assert bool(shared) == (wanted.layout == "chained")


@builds
def test_a_damaged_file_is_refused(
    built: Built, copied: Callable[[Path], Path], wanted: Target
) -> None:
    folder = copied(built(wanted))
    for record in open_engine_set(folder).files:
        path = folder / record.name
        content = path.read_bytes()
        for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.raises(DigestError, match=record.name):
                open_engine(folder)
        path.unlink()
        with pytest.raises(DigestError, match=f"no such file at .*{record.name}"):
            open_engine(folder)
        path.write_bytes(content)
    open_engine_set(folder)


@each
def test_a_precision_that_a_backend_lacks_is_refused(
    small: Path, tmp_path: Path, name: str
) -> None:
    backend = BACKENDS[name]
    lacking = {"fp16", "bf16", "int8"} - set(backend.precisions)
    for precision in sorted(lacking):
        wrong = msgspec.structs.replace(target(name, "chained"), precision=precision)
        with pytest.raises(BackendError, match=f"precision '{precision}' for {name}.*'fp32'"):
            engine_set_from_bundle(small, wrong, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@each
def test_an_option_that_a_backend_lacks_is_refused(small: Path, tmp_path: Path, name: str) -> None:
    wrong = msgspec.structs.replace(target(name, "chained"), options={"no_such_option": 1})
    with pytest.raises(BackendError, match=f"no_such_option.* for {name}"):
        engine_set_from_bundle(small, wrong, tmp_path / "set")
    with pytest.raises(BackendError, match="no_such_option"):
        planned_build(small, wrong, tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


# Opening


@builds
def test_without_the_library_its_extra_is_named(built: Built, wanted: Target) -> None:
    backend = BACKENDS[wanted.backend]
    code = without(backend.library) + (
        "from pathlib import Path\n"
        "from eecompile.errors import BackendError\n"
        "from eecompile.runtime.opening import open_engine\n"
        "try:\n"
        "    open_engine(Path(sys.argv[1]))\n"
        "except BackendError as error:\n"
        "    print(error.remedy)\n"
    )
    assert run(code, str(built(wanted))).strip() == backend.install_to_run


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
@cases(*(name for name in HERE if BACKENDS[name].gpu))
def test_engines_for_a_gpu_say_that_they_need_one(built: Built, wanted: Target) -> None:
    with pytest.raises(BackendError, match="no NVIDIA GPU; expected one, to run plans"):
        Sampler.open(built(wanted))


@runs
def test_a_segment_that_the_library_refuses_is_a_backend_error(
    built: Built, copied: Callable[[Path], Path], wanted: Target
) -> None:
    folder = copied(built(wanted))
    manifest = open_engine_set(folder)
    segment = manifest.segments[0].file
    for path in folder.glob(f"{Path(segment).stem}*"):  # and what else it may be opened from
        path.write_bytes(b"<net/>")
    write_manifest(folder, msgspec.structs.replace(manifest, files=records(folder)))
    with pytest.raises(BackendError, match=segment):
        open_engine(folder)


@runs
def test_sampling_needs_only_the_runtime(built: Built, wanted: Target) -> None:
    others = {backend.library for backend in BACKENDS.values()}
    others -= {BACKENDS[wanted.backend].library}
    code = without(*COMPILE_TIME, *COMMAND_LINE, *others) + (
        "import eecompile\n"
        "with eecompile.Sampler.open(sys.argv[1]) as sampler:\n"
        "    print(sampler.sample(3, steps=2).shape)\n"
    )
    assert run(code, str(built(wanted))).strip() == f"(3, {WIDTH})"


@pytest.mark.parametrize("name", RUNNING)
def test_doctor_finds_what_builds_and_runs(name: str) -> None:
    finding = PROBES[name]()
    assert finding.works.yes
    assert finding.builds.yes
    assert finding.version


# Running


@runs
def test_every_exit_gives_what_the_network_does(built: Built, wanted: Target) -> None:
    with open_engine(built(wanted))[0] as engine:
        assert engine.exits == EXITS
        assert (engine.precision, engine.max_batch) == ("fp32", LARGEST)
        for batch in range(1, LARGEST + 1):
            for depth in EXITS:
                found = evaluate(engine, depth, batch, seed=batch)
                assert found.dtype == np.float32
                np.testing.assert_allclose(found, expected(depth, batch, batch), atol=CLOSE)


@pytest.mark.parametrize("name", RUNNING)
def test_the_layouts_agree(built: Built, name: str) -> None:
    folders = [built(target(name, layout)) for layout in BACKENDS[name].layouts]
    for depth in EXITS:
        results = []
        for folder in folders:
            with open_engine(folder)[0] as engine:
                results.append(evaluate(engine, depth, 3, seed=7))
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=CLOSE)


@runs
def test_more_samples_than_the_profile_has_are_split(built: Built, wanted: Target) -> None:
    with Sampler.open(built(wanted)) as sampler:
        assert sampler.engine.max_batch == LARGEST
        whole = sampler.sample(2 * LARGEST + 1, seed=2)
        for index in (0, LARGEST, 2 * LARGEST):
            alone = sampler.sample(1, seed=2, first=index)
            np.testing.assert_allclose(alone[0], whole[index], atol=1e-4)
        assert np.abs(whole[0] - whole[LARGEST]).max() > 0.1


@runs
def test_several_threads_get_what_one_gets(built: Built, wanted: Target) -> None:
    calls = [(depth, batch, seed) for seed in range(4) for depth in EXITS for batch in (1, 3)]
    with open_engine(built(wanted))[0] as engine:
        wanted_outputs = [evaluate(engine, *call) for call in calls]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda call: evaluate(engine, *call), calls))
    for one, other in zip(wanted_outputs, found, strict=True):
        np.testing.assert_array_equal(other, one)


@runs
def test_a_later_evaluation_leaves_earlier_results_alone(built: Built, wanted: Target) -> None:
    with open_engine(built(wanted))[0] as engine:
        first = evaluate(engine, 2, 3, seed=0)
        kept = first.copy()
        for depth in EXITS:
            evaluate(engine, depth, 3, seed=1)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


@runs
def test_inputs_may_be_read_only_or_strided(built: Built, wanted: Target) -> None:
    x, t, _ = inputs(4, seed=3)
    with open_engine(built(wanted))[0] as engine:
        (plain,) = engine.evaluate(2, x[::2].copy(), t[::2].copy(), {"label": np.array([7, 7])})
        for array in (x, t):
            array.setflags(write=False)
        label = np.broadcast_to(np.int64(7), (2,))
        (found,) = engine.evaluate(2, x[::2], t[::2], {"label": label})
        np.testing.assert_array_equal(found, plain)
        (found,) = engine.evaluate(2, x[:2], t[:2], {"label": label})
    np.testing.assert_allclose(found, predict(2, x[:2], t[:2], label), atol=CLOSE)


@runs
def test_what_is_bound_is_read_and_written_at_every_call(built: Built, wanted: Target) -> None:
    x, t, given = inputs(2, seed=0)
    output = np.empty_like(x)
    with open_engine(built(wanted))[0] as engine:
        bound = engine.bind(x, t, given, [output])
        for seed, depth in enumerate((3, 1, 2, 3, 1)):
            for into, value in zip((x, t), inputs(2, seed)[:2], strict=True):
                into[:] = value
            given["label"][:] = inputs(2, seed)[2]["label"]
            bound(depth)
            np.testing.assert_allclose(output, expected(depth, 2, seed), atol=CLOSE)


@runs
def test_an_engine_is_closed_once_and_opened_again(built: Built, wanted: Target) -> None:
    folder = built(wanted)
    before = (folder / MANIFEST).read_bytes()
    with Sampler.open(folder) as sampler:
        first = sampler.sample(2, seed=1)
    sampler.engine.close()
    with pytest.raises(UsageError, match="closed"):
        sampler.sample(2, seed=1)
    with Sampler.open(folder) as one, Sampler.open(folder) as other:
        one.close()
        np.testing.assert_array_equal(other.sample(2, seed=1), first)
    assert (folder / MANIFEST).read_bytes() == before
