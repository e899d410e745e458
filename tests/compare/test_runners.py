"""Every runner against the trained network, through polygraphy's own Comparator."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import (
    Comparator,
    CosineSimilarityCompareFunc,
    L2CompareFunc,
    PsnrCompareFunc,
    SimpleCompareFunc,
)
from torch import Tensor, nn

from eecompile.compare.checks import check_belongs, checked_bundle
from eecompile.compare.exit_runner import ExitRunner
from eecompile.compare.measure import points, quiet
from eecompile.compare.runners import (
    EngineRunner,
    OnnxRuntimeRunner,
    OpenvinoRunner,
    TensorrtRunner,
    TorchRunner,
)
from eecompile.compare.trained import TrainedNetwork, predict_at
from eecompile.errors import BackendError, ScheduleError, UsageError
from eecompile.networks.call import Call
from eecompile.networks.truncated import Renamed, Truncated
from eecompile.store.bundle import open_bundle, write_manifest
from eecompile.store.manifest import exit_graph_name
from tests.conftest import RECIPE

Make = Callable[[Path, dict[str, Path], int], ExitRunner]
RUNNERS: dict[str, Make] = {
    "onnxruntime": lambda bundle, sets, depth: OnnxRuntimeRunner(bundle, depth),
    "openvino": lambda bundle, sets, depth: OpenvinoRunner(bundle, depth),
    "per_exit": lambda bundle, sets, depth: EngineRunner(sets["per_exit"], depth),
    "chained": lambda bundle, sets, depth: EngineRunner(sets["chained"], depth),
    "polygraphy's own": lambda bundle, sets, depth: OnnxrtRunner(
        SessionFromOnnx(str(bundle / exit_graph_name(depth))), name="polygraphy's"
    ),
}


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module")
def network(bundle: Path) -> TrainedNetwork:
    return TrainedNetwork(bundle, RECIPE)


@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize("kind", RUNNERS)
def test_every_runner_agrees_with_the_trained_network(
    kind: str, depth: int, bundle: Path, engine_sets: dict[str, Path], network: TrainedNetwork
) -> None:
    inputs = points(network.interface, [5])
    runner = RUNNERS[kind](bundle, engine_sets, depth)
    results = Comparator.run([TorchRunner(network, depth), runner], data_loader=inputs)
    assert [len(iterations) for iterations in results.values()] == [len(inputs)] * 2
    assert all(each.runtime > 0 for iterations in results.values() for each in iterations)
    functions = [
        SimpleCompareFunc(check_error_stat="max", atol=1e-4, rtol=0),
        L2CompareFunc(l2_threshold=1e-3),
        CosineSimilarityCompareFunc(cosine_similarity_threshold=0.99999),
        PsnrCompareFunc(psnr_threshold=80),
    ]
    assert Comparator.compare_accuracy(results, compare_func=functions)


def test_exits_differ_so_agreement_means_something(network: TrainedNetwork) -> None:
    inputs = points(network.interface, [2])
    results = Comparator.run(
        [TorchRunner(network, 3), TorchRunner(network, 12)], data_loader=inputs
    )
    shallow, deep = (next(iter(iterations[0].values())) for iterations in results.values())
    assert np.abs(shallow - deep).max() > 1e-2


def test_a_runner_can_be_used_again_and_with_several_batch_sizes(
    engine_sets: dict[str, Path], network: TrainedNetwork
) -> None:
    runner = EngineRunner(engine_sets["chained"], 6)
    for _ in range(2):
        with runner:
            for point in points(network.interface, [7]) * 2:
                (found,) = runner.infer(point).values()
                (expected,) = network.evaluate(6, point)
                np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses its own past
def test_the_compiled_network_agrees(small_bundle: Path, small_recipe: Path) -> None:
    network = TrainedNetwork(small_bundle, small_recipe)
    inputs = points(network.interface, [2])[:2]
    runners = [TorchRunner(network, 1), TorchRunner(network, 1, compiled=True, name="compiled")]
    function = SimpleCompareFunc(check_error_stat="max", atol=1e-4, rtol=0)
    results = Comparator.run(runners, data_loader=inputs)
    assert Comparator.compare_accuracy(results, compare_func=function)


def test_an_exit_that_is_none_is_refused(bundle: Path) -> None:
    with pytest.raises(ScheduleError, match="depth 5"):
        OnnxRuntimeRunner(bundle, 5)


def test_plans_need_polygraphy_set_up_for_their_library(engine_sets: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match="use EngineRunner"):
        TensorrtRunner(engine_sets["chained"], 3)


def test_another_checkpoint_is_refused(bundle: Path, tmp_path: Path) -> None:
    data = bytearray((RECIPE.parent / "eecompile_fashion_dit/fashion-dit.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "other.safetensors").write_bytes(data)
    text = RECIPE.read_text()
    line = next(row for row in text.splitlines() if row.startswith("checkpoint"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text.replace(line, 'checkpoint = "other.safetensors"'))
    with pytest.raises(UsageError, match=r"other\.safetensors .SHA-256 .* the bundle's"):
        TrainedNetwork(bundle, recipe)
    recipe.write_text(text.replace('name = "fashion-dit"', 'name = "another"'))
    with pytest.raises(UsageError, match="the network another"):
        TrainedNetwork(bundle, recipe)


def test_an_engine_set_of_another_bundle_is_refused(
    bundle: Path, engine_sets: dict[str, Path], tmp_path: Path
) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "other"))
    write_manifest(other, replace(open_bundle(other), reference="something else"))
    assert check_belongs(bundle, engine_sets["per_exit"])
    with pytest.raises(UsageError, match="another export of fashion-dit"):
        check_belongs(other, engine_sets["per_exit"])


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.count = 0
        for block in self.blocks:
            block.register_forward_hook(self._counted)

    def _counted(self, *_: Any) -> None:
        self.count += 1

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        for block in self.blocks:
            noisy = block(noisy) + time[:, None]
        return noisy


def test_a_network_that_is_cut_runs_only_the_blocks_of_its_exit() -> None:
    names = {"x": "noisy", "t": "time"}
    inner = Blocks()
    cut = Truncated(inner, exits=(1, 3, 4), blocks="blocks", call=Call(names)).eval()
    x, t = torch.randn(2, 3), torch.ones(2)
    expected = cut(x=x, t=t)
    for depth, right in zip(cut.exits, expected, strict=True):
        torch.testing.assert_close(predict_at(cut, depth)(x=x, t=t), right)
    assert cut.exits == (1, 3, 4)


class Several(nn.Module):
    exits = (1, 2)

    def predict_at(self, depth: int, noisy: Tensor, time: Tensor) -> Tensor:
        return noisy * depth + time[:, None]

    def forward(self, noisy: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.predict_at(depth, noisy, time) for depth in self.exits)


def test_a_renamed_network_predicts_from_one_exit() -> None:
    renamed = Renamed(Several(), Call({"x": "noisy", "t": "time"}))
    x, t = torch.randn(2, 3), torch.ones(2)
    for depth, right in zip(renamed.exits, renamed(x=x, t=t), strict=True):
        torch.testing.assert_close(predict_at(renamed, depth)(x=x, t=t), right)


def test_digests_are_read_again_when_a_manifest_changes(bundle: Path) -> None:
    assert checked_bundle(bundle) is checked_bundle(str(bundle))
