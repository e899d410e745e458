"""The service of docs/how-to/embed.md works as it stands."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import eecompile
from tests.conftest import ROOT

DOCUMENT = ROOT / "docs" / "how-to" / "embed.md"


@pytest.fixture(scope="module")
def service(
    engine_sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The module that the document shows."""
    (source,) = re.findall(
        r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE
    )
    path = tmp_path_factory.mktemp("service") / "service.py"
    path.write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINES", str(engine_sets["per_exit"]))
        spec = importlib.util.spec_from_file_location("service", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "service", module)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    with TestClient(service.app) as client:
        yield client


def test_the_service_answers_with_what_the_sampler_gives(
    client: Any, engine_sets: dict[str, Path]
) -> None:
    body = {"n": 2, "label": 3, "seed": 5}
    answer = client.post("/samples", json=body)
    assert answer.status_code == 200
    with eecompile.Sampler.open(engine_sets["per_exit"]) as sampler:
        expected = sampler.sample(2, label=3, seed=5)
    np.testing.assert_allclose(answer.json(), expected, atol=1e-4)


def test_requests_at_once_are_answered_apart(client: Any) -> None:
    alone = [client.post("/samples", json={"seed": seed}).json() for seed in range(6)]
    with ThreadPoolExecutor(6) as threads:
        together = list(
            threads.map(lambda seed: client.post("/samples", json={"seed": seed}).json(), range(6))
        )
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_bad_request_is_told_why(client: Any) -> None:
    answer = client.post("/samples", json={"label": 12})
    assert answer.status_code == 422
    assert "label = 12; expected a value from 0 to 9" in answer.json()["detail"]
    assert client.post("/samples", json={"n": 0}).status_code == 422


def test_the_service_outlives_callers_that_go_and_errors(client: Any, service: Any) -> None:
    async def gone() -> None:
        task = asyncio.create_task(service.samples(n=1, label=0, seed=0))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    client.portal.call(gone)
    scheduler = service.app.state.scheduler
    with pytest.MonkeyPatch.context() as patch:

        def fails(*_: Any) -> Any:
            raise eecompile.BackendError(found="no room", expected="some", remedy="make room")

        patch.setattr(scheduler.sampler, "planned", fails)
        assert client.post("/samples", json={"seed": 1}).status_code == 500
    assert client.post("/samples", json={"seed": 1}).status_code == 200
    assert scheduler.load().active == 0
