"""A model repository, served by a real Triton on the CPU; clients over HTTP and gRPC."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec
import numpy as np
import pytest

from eecompile import Sampler
from eecompile.errors import BundleError, OutputExistsError, UsageError
from eecompile.programs.interface import Condition, Interface, Resizable, State
from eecompile.serve import repository_from_engines
from eecompile.serve.triton import _stream_config
from tests.compiler.test_companions import folder
from tests.conftest import ROOT

__all__ = ["folder"]
TRITON = Path(os.environ.get("EECOMPILE_TRITON", Path(sys.prefix, "triton")))
"""Where scripts/environment puts nvidia-pytriton, and the NumPy that its server needs."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
KINDS: dict[str, Any] = {"seed": np.uint64, "label": np.int64, "guidance": np.float32}
QUICK: dict[str, Any] = {"steps": 6, "solver": "ddim"}


# The folder


def test_a_repository_has_two_models_and_says_what_they_need(
    small_sets: dict[str, Path], tmp_path: Path
) -> None:
    names = repository_from_engines([small_sets["per_exit"]], tmp_path / "models", max_n=7)
    assert names == ("fashion-dit", "fashion-dit_stream")
    stream = tmp_path / "models" / "fashion-dit_stream"
    assert (stream / "requirements.txt").read_text().startswith("eecompile[cpu]==")
    config = (stream / "config.pbtxt").read_text()
    assert '{ name: "label" data_type: TYPE_INT64 dims: [ -1 ] optional: true }' in config
    assert 'key: "max_n" value { string_value: "7" }' in config
    copied = stream / "1" / "engines" / "cpu"
    assert {path.name for path in copied.iterdir()} == {
        path.name for path in small_sets["per_exit"].iterdir()
    }
    with Sampler.open(copied) as sampler:
        sampler.warmup()


def test_a_place_that_is_taken_and_what_is_no_engine_set_are_refused(
    small_sets: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(OutputExistsError, match="models, which exists; expected a place for a new"):
        repository_from_engines([small_sets["per_exit"]], tmp_path / "models")
    with pytest.raises(BundleError):
        repository_from_engines([tmp_path / "models"], tmp_path / "others")
    with pytest.raises(UsageError, match="cpu"):
        repository_from_engines([small_sets["per_exit"]] * 2, tmp_path / "others")
    assert not (tmp_path / "others").exists()


def test_arrays_and_free_axes_are_described() -> None:
    interface = Interface(
        name="any",
        exits=(3,),
        state=State(shape=(4, 8, 8), resizable=Resizable(axes=(1, 2), min=4, max=8)),
        conditions={"text": Condition(dtype="float32", shape=(77, 768))},
    )
    config = _stream_config("any_stream", interface, [], 64)
    assert '{ name: "text" data_type: TYPE_FP32 dims: [ -1, 77, 768 ] optional: true }' in config
    assert '{ name: "samples" data_type: TYPE_FP32 dims: [ -1, 4, -1, -1 ] }' in config


def test_a_condition_with_the_name_of_an_input_is_refused(
    small_sets: dict[str, Path], tmp_path: Path
) -> None:
    from eecompile.serve.triton import _check_names

    interface = Sampler.open(small_sets["per_exit"]).interface
    label = interface.conditions["label"]
    for name in ("seed", "null_label"):
        odd = msgspec.structs.replace(interface, conditions={name: label})
        with pytest.raises(UsageError, match=f"a condition '{name}'"):
            _check_names(odd)


# A real server


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in listeners]
    for each in listeners:
        each.close()
    return ports


def python_for_triton(folder: Path) -> Path:
    """An interpreter as this one, but with the NumPy that Triton's stub was built for.

    The stub reads no PYTHONPATH: it starts the first python3 on the path.
    """
    venv.EnvBuilder(symlinks=True).create(folder)
    own = Path(sysconfig.get_path("purelib"))
    lines = (str(ROOT), str(TRITON), f"import site; site.addsitedir({str(own)!r})")
    (folder / own.relative_to(sys.prefix) / "dev.pth").write_text("\n".join(lines))
    return folder / "bin"


def backends(folder: Path) -> Path:
    """Triton's Python backend, with the stub for this interpreter."""
    server = TRITON / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / PYTHON / "triton_python_backend_stub"
    python = folder / "python"
    python.mkdir(parents=True)
    for path in (*(server / "backends" / "python").glob("*.*"), stub):
        (python / path.name).symlink_to(path)
    return folder


@contextmanager
def triton(repository: Path, work: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a server, for HTTP and gRPC; it ends with the block."""
    http, grpc = free_ports(2)
    command = [
        TRITON / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={backends(work / 'backends')}",
        *("--http-address=127.0.0.1", f"--http-port={http}"),
        *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
        "--allow-metrics=false",
    ]
    path = f"{python_for_triton(work / 'python')}:{os.environ['PATH']}"
    libraries = sysconfig.get_config_var("LIBDIR")
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": libraries}
    environment["OMP_NUM_THREADS"] = "1"
    with (
        (work / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process,
    ):
        try:
            yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def clients(
    small_sets: dict[str, Path], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Any, Any]]:
    """Of a server: tritonclient over HTTP, and over gRPC."""
    if not (TRITON / "pytriton").is_dir() or find_spec("tritonclient") is None:
        pytest.skip("no nvidia-pytriton and tritonclient: scripts/environment installs them")
    import tritonclient.grpc
    import tritonclient.http

    work = tmp_path_factory.mktemp("triton")
    repository_from_engines([small_sets["per_exit"]], work / "models", max_n=8, concurrent=2)
    for name in repository_from_engines([folder / "cpu"], work / "prompted", concurrent=1):
        (work / "prompted" / name).rename(work / "models" / name)
    with triton(work / "models", work) as (http, grpc):
        clients = (
            tritonclient.http.InferenceServerClient(http, concurrency=8),
            tritonclient.grpc.InferenceServerClient(grpc),
        )
        for _ in range(600):
            if any("UNAVAILABLE" in line for line in (work / "log").read_text().splitlines()):
                break
            try:
                names = [path.name for path in (work / "models").iterdir()]
                if all(clients[1].is_model_ready(name) for name in names):
                    break
            except Exception:  # it does not listen yet
                pass
            time.sleep(0.1)
        else:
            raise AssertionError((work / "log").read_text())
        yield clients
        for client in clients:
            client.close()


def asked(client: Any, **values: Any) -> list[Any]:
    """The inputs of a request."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import np_to_triton_dtype

    module = tritonclient.http
    if isinstance(client, tritonclient.grpc.InferenceServerClient):
        module = tritonclient.grpc
    inputs = []
    for name, value in values.items():
        kind: Any = np.int32 if isinstance(value, int) else None
        texts = isinstance(value, str) or name == "prompt"
        kind = np.bool_ if isinstance(value, bool) else object if texts else kind
        array = np.atleast_1d(np.array(value, KINDS.get(name, kind)))
        tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def streamed(client: Any, *requests: dict[str, Any]) -> list[list[Any]]:
    """The responses to each of several requests in one stream; errors are responses too."""
    told = SimpleQueue[Any]()
    client.start_stream(lambda result, error: told.put((result, error)))
    for index, values in enumerate(requests):
        client.async_stream_infer(
            "fashion-dit_stream",
            asked(client, **values),
            request_id=str(index),
            enable_empty_final_response=True,
        )
    responses: list[list[Any]] = [[] for _ in requests]
    left = len(requests)
    while left:
        result, error = told.get(timeout=60)
        if error is not None:
            responses[0].append(error)
            left -= 1
            continue
        response = result.get_response()
        responses[int(response.id)].append(result)
        left -= response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return responses


@pytest.mark.slow
def test_one_response_over_http_and_grpc_has_the_samplers_samples(
    clients: tuple[Any, Any], small_sets: dict[str, Path]
) -> None:
    with Sampler.open(small_sets["per_exit"]) as sampler:
        for client in clients:
            inputs = asked(client, n=3, seed=2**40, label=[1, 2, 3], guidance=2.0, **QUICK)
            made = client.infer("fashion-dit", inputs).as_numpy("samples")
            expected = sampler.sample(3, seed=2**40, label=[1, 2, 3], guidance=2.0, **QUICK)
            np.testing.assert_allclose(made, expected, atol=2e-5)

        def ask(seed: int) -> Any:
            inputs = asked(clients[1], n=1 + seed % 2, seed=seed, schedule="4,1", **QUICK)
            return clients[1].infer("fashion-dit", inputs).as_numpy("samples")

        with ThreadPoolExecutor(8) as threads:
            found = list(threads.map(ask, range(24)))
        for seed, made in enumerate(found):
            expected = sampler.sample(1 + seed % 2, seed=seed, schedule=[4, 1], **QUICK)
            np.testing.assert_allclose(made, expected, atol=2e-5)


@pytest.mark.slow
def test_prompts_are_encoded_and_samples_decoded(clients: tuple[Any, Any], folder: Path) -> None:
    from tritonclient.utils import InferenceServerException

    given: dict[str, Any] = {"n": 2, "prompt": ["a cat", "a dog"], "negative": "snow", "seed": 3}
    with Sampler.open(folder / "cpu") as sampler:
        expected = sampler.sample(2, prompt=["a cat", "a dog"], negative="snow", seed=3)
        decoded = sampler.decode(expected)
    for client in clients:
        made = client.infer("tiny", asked(client, **given)).as_numpy("samples")
        np.testing.assert_allclose(made, decoded, atol=1e-5 * np.abs(decoded).max())
        made = client.infer("tiny", asked(client, **given, latents=True)).as_numpy("samples")
        np.testing.assert_allclose(made, expected, atol=1e-5 * np.abs(expected).max())
        with pytest.raises(InferenceServerException, match="no prompt, and no condition"):
            client.infer("tiny", asked(client, n=1))


@pytest.mark.slow
def test_previews_are_streamed_and_requests_in_one_stream_join(
    clients: tuple[Any, Any], small_sets: dict[str, Path]
) -> None:
    requests = [{"n": 2, "seed": seed, "preview": seed == 0, **QUICK} for seed in range(6)]
    responses = streamed(clients[1], *requests)
    with Sampler.open(small_sets["per_exit"]) as sampler:
        for seed, (*previews, last) in enumerate(responses):
            assert last.as_numpy("final")[0]
            expected = sampler.sample(2, seed=seed, **QUICK)
            np.testing.assert_allclose(last.as_numpy("samples"), expected, atol=2e-5)
            assert bool(previews) == (seed == 0)
    steps = [int(each.as_numpy("step")[0]) for each in responses[0][:-1]]
    assert steps == sorted(steps)
    assert steps[0] >= 1
    assert responses[0][0].as_numpy("choice")[0] in (b"1", b"2", b"4")
    assert responses[0][0].as_numpy("rows").tolist() == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"n": 0}, "found number of samples 0"),
        ({"n": 9}, "found n 9; expected at most 8"),
        ({"n": 1, "label": 12}, "label = 12; expected a value from 0 to 9"),
        ({"n": 1, "schedule": "fastest"}, "exit schedule 'fastest'"),
        ({"n": 1, "schedule": "/etc/secret.json"}, "write the choices out"),
        ({"n": 1, "guidance": float("nan")}, "guidance"),
        ({"n": 2, "label": [1, 2, 3]}, "condition 'label'"),
        ({"n": 1, "solver": "dmim"}, "dmim"),
    ],
    ids=str,
)
def test_a_bad_request_gets_a_sentence_and_the_server_lives(
    clients: tuple[Any, Any], wrong: dict[str, Any], told: str
) -> None:
    from tritonclient.utils import InferenceServerException

    for client in clients:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("fashion-dit", asked(client, **wrong))
        assert told in str(caught.value.message())
        assert "Traceback" not in str(caught.value)
    ((error,),) = streamed(clients[1], wrong)
    assert told in str(error)
    ((last,),) = streamed(clients[1], {"n": 1, **QUICK})
    assert last.as_numpy("samples").shape == (1, 1, 28, 28)


@pytest.mark.slow
def test_a_caller_that_goes_gives_its_rows_back(clients: tuple[Any, Any]) -> None:
    client = clients[1]
    client.start_stream(lambda result, error: None)
    started = time.monotonic()
    for seed in range(4):
        long = asked(client, n=8, seed=seed, steps=1000, schedule="full")
        client.async_stream_infer("fashion-dit_stream", long)
    time.sleep(0.3)
    client.stop_stream(cancel_requests=True)
    ((last,),) = streamed(client, {"n": 1, **QUICK})
    assert last.as_numpy("final")[0]
    assert time.monotonic() - started < 20  # the four would take a minute and more
