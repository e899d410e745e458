"""A real Ray on this machine: data sets by its workers, also where one is killed; Ray Serve."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile import Sampler, SampleRequest
from eecompile.errors import ConditionError, OutputExistsError, UsageError
from tests.compiler.test_companions import folder
from tests.conftest import ROOT

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens at 127.0.0.1 alone
ray = pytest.importorskip("ray")
from eecompile.serve.ray import deployment, sample_dataset  # noqa: E402

__all__ = ["folder"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # in Ray Serve, of Pydantic's
]
WAY: dict[str, Any] = {"solver": "ddim", "steps": 4, "schedule": "full"}
REQUEST = SampleRequest(n=22, seed=5, first=3, conditions={"label": [1, 2, 3]})


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init(
            "local",  # not that of another test process
            num_cpus=2,
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def whole(
    cluster: None, small_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a data set that nothing interrupted."""
    output = tmp_path_factory.mktemp("data") / "set"
    report = sample_dataset(small_sets["per_exit"], REQUEST, output, block=4, workers=1, **WAY)
    assert report.kept == 0
    return {path.name: path.read_bytes() for path in report.files}


def test_a_data_set_has_the_samplers_samples_and_their_conditions(
    whole: dict[str, bytes], small_sets: dict[str, Path]
) -> None:
    assert list(whole) == [f"samples-{first:09d}.npz" for first in range(3, 25, 4)]
    found = [np.load(io.BytesIO(data)) for data in whole.values()]
    labels = np.concatenate([each["label"] for each in found])
    np.testing.assert_array_equal(labels, np.resize([1, 2, 3], 22))
    with Sampler.open(small_sets["per_exit"]) as sampler:
        expected = sampler.sample(22, seed=5, first=3, label=labels, **WAY)
    samples = np.concatenate([each["samples"] for each in found])
    np.testing.assert_allclose(samples, expected, atol=2e-5)


def test_what_is_missing_is_made_again_with_the_same_bytes(
    whole: dict[str, bytes], small_sets: dict[str, Path], tmp_path: Path
) -> None:
    engines, output = small_sets["per_exit"], tmp_path / "set"
    sample_dataset(engines, REQUEST, output, block=4, **WAY)
    gone = ("samples-000000007.npz", "samples-000000023.npz")
    for name in gone:
        (output / name).unlink()
    (output / f".{gone[0]}.0123abcd.partial").write_bytes(b"of a writer that was killed")
    report = sample_dataset(engines, REQUEST, output, block=4, **WAY)
    assert report.kept == len(whole) - 2
    assert {path.name: path.read_bytes() for path in report.files} == whole
    assert {path.name for path in output.iterdir()} == {*whole, "dataset.json"}
    other = SampleRequest(n=22, seed=6, first=3, conditions=REQUEST.conditions)
    with pytest.raises(OutputExistsError, match="with another data set"):
        sample_dataset(engines, other, output, block=4, **WAY)
    with pytest.raises(OutputExistsError, match="which holds something else"):
        sample_dataset(engines, REQUEST, tmp_path, block=4, **WAY)


def test_wrong_requests_are_refused(
    cluster: None, small_sets: dict[str, Path], tmp_path: Path
) -> None:
    engines = small_sets["per_exit"]
    with pytest.raises(UsageError, match="block 0"):
        sample_dataset(engines, REQUEST, tmp_path / "set", block=0)
    with pytest.raises(UsageError, match="dmim"):
        sample_dataset(engines, REQUEST, tmp_path / "set", solver="dmim")
    with pytest.raises(ConditionError, match="label = 12"):
        wrong = SampleRequest(n=4, conditions={"label": 12})
        sample_dataset(engines, wrong, tmp_path / "set", **WAY)
    assert not (tmp_path / "set").exists()


def test_prompts_are_repeated_in_turn_and_samples_decoded(
    cluster: None, folder: Path, tmp_path: Path
) -> None:
    engines, prompts = folder / "cpu", ["a cat", "a dog in snow", "the red sky"]
    way: dict[str, Any] = {"prompt": prompts, "negative": "red", "decode": True, "steps": 2}
    request = SampleRequest(n=5, seed=4, guidance=3.0)
    report = sample_dataset(engines, request, tmp_path / "set", block=2, workers=1, **way)
    found = [np.load(path) for path in report.files]
    told = np.concatenate([each["prompt"] for each in found]).tolist()
    assert told == [*prompts, *prompts[:2]]
    assert set(found[0]) == {"samples", "prompt", "negative"}
    with Sampler.open(engines) as sampler:
        expected = sampler.sample(seed=4, guidance=3.0, **(way | {"prompt": told}))
    samples = np.concatenate([each["samples"] for each in found])
    np.testing.assert_allclose(samples, expected, atol=1e-5 * np.abs(expected).max())
    # Another worker, which has encoded nothing before, makes the same bytes.
    before = report.files[1].read_bytes()
    report.files[1].unlink()
    again = sample_dataset(engines, request, tmp_path / "set", block=2, workers=1, **way)
    assert again.kept == 2
    assert again.files[1].read_bytes() == before
    with pytest.raises(OutputExistsError, match="with another data set"):
        sample_dataset(engines, request, tmp_path / "set", block=2, **(way | {"prompt": "a cat"}))


def test_wrong_prompts_are_refused(
    cluster: None, folder: Path, small_sets: dict[str, Path], tmp_path: Path
) -> None:
    engines = folder / "cpu"
    with pytest.raises(UsageError, match="3 prompts for 2 samples"):
        sample_dataset(engines, SampleRequest(n=2), tmp_path / "set", prompt=["a", "b", "c"])
    with pytest.raises(ConditionError, match="no prompt"):
        sample_dataset(engines, SampleRequest(n=2), tmp_path / "set")
    with pytest.raises(UsageError, match="which has no encoder"):
        sample_dataset(small_sets["per_exit"], REQUEST, tmp_path / "set", prompt="a cat")
    with pytest.raises(UsageError, match="to decode"):
        sample_dataset(small_sets["per_exit"], REQUEST, tmp_path / "set", decode=True)
    assert not (tmp_path / "set").exists()


def workers() -> list[int]:
    """Process ids of this test's workers."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            parents = [
                int(line.split()[1])
                for line in (process / "status").read_text().splitlines()
                if line.startswith("PPid:")
            ]
        except OSError:  # it has just ended
            continue
        if name.startswith(b"ray::_Worker") and _started_here(parents[0]):
            found.append(int(process.name))
    return found


def _started_here(process: int) -> bool:
    while process > 1 and process != os.getpid():
        status = Path(f"/proc/{process}/status").read_text()
        process = int(status.partition("PPid:")[2].split()[0])
    return process == os.getpid()


def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    whole: dict[str, bytes], small_sets: dict[str, Path], tmp_path: Path
) -> None:
    long = {**WAY, "steps": 300}
    engines, reports = small_sets["per_exit"], list[Any]()
    job = threading.Thread(
        target=lambda: reports.append(
            sample_dataset(engines, REQUEST, tmp_path / "set", block=4, workers=1, **long)
        )
    )
    job.start()
    while job.is_alive() and not list((tmp_path / "set").glob("samples-*.npz")):
        time.sleep(0.005)
    killed = workers()
    assert len(killed) == 1
    os.kill(killed[0], signal.SIGKILL)
    job.join(120)
    (report,) = reports
    again = sample_dataset(engines, REQUEST, tmp_path / "again", block=4, workers=1, **long)
    assert [path.name for path in report.files] == list(whole)
    for one, other in zip(report.files, again.files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert {path.name for path in (tmp_path / "set").iterdir()} == {*whole, "dataset.json"}


def test_ray_serve_answers_as_the_server_does(cluster: None, small_sets: dict[str, Path]) -> None:
    httpx = pytest.importorskip("httpx")
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options: dict[str, Any] = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5}}
    serve.run(deployment(small_sets["per_exit"], max_batch=8, **options), name="samples")
    try:
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
            Sampler.open(small_sets["per_exit"]) as sampler,
        ):
            assert client.get("/ready").json()["ready"]
            for seed in range(4):
                answer = client.post("/samples", json={"n": 2, "seed": seed, **WAY})
                assert answer.status_code == 200, answer.text
                made = np.load(io.BytesIO(answer.content))["samples"]
                expected = sampler.sample(2, seed=seed, **WAY)
                np.testing.assert_allclose(made, expected, atol=2e-5)
            wrong = client.post("/samples", json={"n": 0})
            assert wrong.status_code == 422
            assert "expected greater than or equal to 1" in wrong.json()["detail"]
    finally:
        serve.shutdown()
