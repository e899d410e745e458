"""What docs/how-to/text-diffusion.md shows is true; a plain loop in torch says the same words."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import eecompile
from eecompile.runtime.trajectory.noise import normal_noise
from tests.conftest import Shared
from tests.docs import test_how_to as how_to

DOCUMENT = how_to.HOW_TO / "text-diffusion.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def folder(shared: Shared) -> Path:
    """The document's files, after all of its commands; not to be written to."""
    return shared("text-diffusion", lambda place: how_to.carry_out(place, DOCUMENT))


@pytest.fixture
def words(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The document's module words.py."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "words", raising=False)
    return importlib.import_module("words")


def agrees(text: str) -> bool:
    """Whether a sentence is one of the grammar in train.py."""
    match text.split():
        case [first, _, subject, verb, second, _, thing]:
            several = subject.endswith("s")
            articles = {True: ("the", "some"), False: ("the", "a")}
            return (
                first in articles[several]
                and verb.endswith("s") != several
                and second in articles[thing.endswith("s")]
                and verb.rstrip("s") in ("see", "hear", "like")
                and all(noun.rstrip("s") in ("cat", "dog", "bird") for noun in (subject, thing))
            )
    return False


def test_texts_agree_with_the_grammar(folder: Path) -> None:
    lines = (folder / "words.txt").read_text().splitlines()
    assert len(lines) == 64
    assert len(set(lines)) > 40
    assert np.mean([agrees(line) for line in lines]) > 0.7  # at random, it is 0.0005
    printed = json.loads((folder / how_to.PRINTED).read_text())
    assert printed["python sample.py"].splitlines() == lines


@pytest.mark.parametrize("depth", [2, 4])
def test_a_plain_loop_in_torch_says_the_same(folder: Path, words: Any, depth: int) -> None:
    network = words.WordsNet((2, 4), 19)
    network.load_state_dict(load_file(folder / "words.safetensors"))
    embeddings = load_file(folder / "rounding.safetensors")["embeddings"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with eecompile.Sampler.open(folder / "out" / "words" / "cpu") as sampler:
        found = sampler.sample(16, seed=5, steps=20, schedule=depth)
        scores = sampler.decode(found)
        texts = sampler.texts(scores)
        times = [round(step.timestep) for step in sampler.program(None, 20).steps]
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    x = torch.from_numpy(normal_noise(5, range(16), 0, (8, 16))).double()
    with torch.no_grad():
        for t, following in zip(times, [*times[1:], None], strict=True):
            at = torch.full((16,), float(t))
            data = network.eval()(x.float(), at)[(2, 4).index(depth)].double()
            noise = (x - alpha_bar[t].sqrt() * data) / (1 - alpha_bar[t]).sqrt()
            after = alpha_bar[following] if following is not None else torch.tensor(1.0)
            x = after.sqrt() * data + (1 - after).sqrt() * noise
    size = float(x.abs().max())
    np.testing.assert_allclose(found, x.numpy(), atol=2e-4 * size)
    ids = torch.cdist(x.float(), embeddings[None]).argmin(-1)
    assert texts == tokenizer.decode_batch(ids.tolist())
    assert scores.shape == (16, 8, len(embeddings))


def test_texts_are_served(folder: Path) -> None:
    pytest.importorskip("uvicorn")
    from tests.serve.test_server import EVENTS, arrays, events, served

    body = {"n": 3, "seed": 2, "steps": 5}
    with (
        eecompile.Sampler.open(folder / "out" / "words" / "cpu") as sampler,
        served(sampler) as client,
    ):
        scores = sampler.sample(3, seed=2, steps=5, decode=True)
        right = sampler.texts(scores)
        answer = client.post("/samples", json=body, headers={"accept": "text/plain"})
        assert answer.text.splitlines() == right
        np.testing.assert_allclose(
            arrays(client.post("/samples", json=body)), scores, atol=1e-4 * np.abs(scores).max()
        )
        with client.stream("POST", "/samples", json=body, headers={"accept": EVENTS}) as answer:
            *_, (_, told) = events(answer)
        assert told["texts"] == right
        picture = client.post("/samples", json=body, headers={"accept": "image/png"})
        assert picture.status_code == 422
        assert "image/png for decoded text" in picture.json()["detail"]
