"""The networks of diffusers, tiny: from a recipe to the samples of the library's own loop."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    MochiTransformer3DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

from eecompile.networks.lumina import Lumina2, LuminaNext
from eecompile.networks.mochi import Mochi
from eecompile.recipe import load_recipe
from tests.conftest import ROOT

TINY = ROOT / "tests" / "networks" / "tiny"
# Fast by default: constants and two lists; complex tables; a U-Net.
FAST = ("flux", "qwen-image", "stable-diffusion")
PARAMS = [
    pytest.param(path.stem, marks=[] if path.stem in FAST else [pytest.mark.slow])
    for path in sorted(TINY.glob("*.toml"))
]


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("networks")


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", PARAMS)
def test_it_samples_as_its_library_does(name: str, networks: Any, tmp_path: Path) -> None:
    row = networks.network_row(name, tmp_path)
    assert 0 < row["export_error"] < 2e-5
    assert 0 < row["sample_error"] < 2e-4
    if len(row["cuts"]) > 1:
        assert row["span_error"] < 2e-5


def test_the_table_has_every_network(networks: Any) -> None:
    listed = (ROOT / "docs" / "networks.md").read_text()
    assert all(f"| {name} |" in listed for name in networks.NAMES)


ADAPTED = {
    "lumina2": (Lumina2, Lumina2Transformer2DModel),
    "lumina-next": (LuminaNext, LuminaNextDiT2DModel),
    "mochi": (Mochi, MochiTransformer3DModel),
}


@pytest.mark.filterwarnings("ignore:In CPU autocast")  # Mochi asks for float32
@pytest.mark.parametrize("name", list(ADAPTED))
@pytest.mark.parametrize("lengths", [(5, 5), (3, 3), (2, 5)])
def test_an_adapter_computes_what_the_original_does(name: str, lengths: tuple[int, int]) -> None:
    adapter, original = ADAPTED[name]
    recipe = load_recipe(TINY / f"{name}.toml")
    torch.manual_seed(0)
    network: Any = original(**recipe.network.options).eval()
    for parameter in network.parameters():  # some start at zero
        torch.nn.init.normal_(parameter, std=0.3)
    adapted = adapter(**recipe.network.options).eval()
    adapted.load_state_dict(network.state_dict())
    given = {
        "hidden_states": torch.randn(2, *recipe.state.shape),
        "timestep": torch.tensor([0.3, 0.9]),
        "encoder_hidden_states": torch.randn(2, 5, 16),
        recipe.network.arguments["mask"]: torch.tensor(
            [[i < n for i in range(5)] for n in lengths]
        ),
    }
    if name == "lumina-next":
        table = get_2d_rotary_pos_embed_lumina(8, 384, 384)
        given |= {"image_rotary_emb": table, "cross_attention_kwargs": {}}
    with torch.no_grad():
        right = network(**given).sample
        found = adapted(**given)
    found = found if isinstance(found, torch.Tensor) else found.sample
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))
