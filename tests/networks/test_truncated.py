"""Truncated against modules whose list of blocks is really cut."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch import Tensor, nn

from eecompile.errors import RecipeError
from eecompile.networks.base import MultiExitNetwork
from eecompile.networks.call import Call
from eecompile.networks.truncated import Truncated

EXITS = (1, 3, 4)
SIZES: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 2,
    "out_channels": 4,  # the variance is learned
    "num_layers": 4,
    "sample_size": 8,
}
ARGUMENTS = {
    "x": "hidden_states",
    "t": "timestep",
    "label": "class_labels",
    "text": "encoder_hidden_states",
    "mask": "encoder_attention_mask",
    "side": "added_cond_kwargs.resolution",
    "ratio": "added_cond_kwargs.aspect_ratio",
}


def randomised(network: Any) -> nn.Module:
    assert isinstance(network, nn.Module)
    torch.manual_seed(0)
    for parameter in network.parameters():  # some start at zero
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def dit() -> tuple[nn.Module, dict[str, Tensor]]:
    make: Any = DiTTransformer2DModel  # diffusers is untyped
    network = make(**SIZES, num_embeds_ada_norm=5)
    return randomised(network), {**noisy(), "label": torch.tensor([1, 5])}


def pixart() -> tuple[nn.Module, dict[str, Tensor]]:
    network = pixart_network(use_additional_conditions=False)
    text, mask = torch.randn(2, 5, 6), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    return network, {**noisy(), "text": text, "mask": mask}


def pixart_of_any_size() -> tuple[nn.Module, dict[str, Tensor]]:
    network = pixart_network(use_additional_conditions=True)
    side, ratio = torch.tensor([[8.0, 8.0], [4.0, 8.0]]), torch.tensor([[1.0], [0.5]])
    text = torch.randn(2, 5, 6)
    return network, {**noisy(), "text": text, "side": side, "ratio": ratio}


def pixart_network(*, use_additional_conditions: bool) -> nn.Module:
    make: Any = PixArtTransformer2DModel
    network = make(
        **SIZES,
        cross_attention_dim=24,
        caption_channels=6,
        use_additional_conditions=use_additional_conditions,
    )
    return randomised(network)


def noisy() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(2, 2, 8, 8), "t": torch.tensor([3.5, 900.0])}


NETWORKS = [dit, pixart, pixart_of_any_size]
Make = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


def really_cut(network: nn.Module, inputs: dict[str, Tensor], depth: int) -> Tensor:
    short: Any = copy.deepcopy(network)
    short.transformer_blocks = nn.ModuleList(list(short.transformer_blocks)[:depth])
    call: dict[str, Any] = {}
    for name, value in inputs.items():
        if name in ("side", "ratio"):
            entry = {"side": "resolution", "ratio": "aspect_ratio"}[name]
            call["added_cond_kwargs"] = {**call.get("added_cond_kwargs", {}), entry: value}
        else:
            call[ARGUMENTS[name]] = value
    return cast(Tensor, short(**call).sample)


def truncated(network: nn.Module, exits: tuple[int, ...] = EXITS) -> Truncated:
    return Truncated(network, exits=exits, blocks="transformer_blocks", call=Call(ARGUMENTS)).eval()


@pytest.mark.parametrize("make", NETWORKS)
def test_each_exit_is_the_module_with_its_blocks_really_cut(make: Make) -> None:
    network, inputs = make()
    expected = {depth: really_cut(network, inputs, depth) for depth in EXITS}
    found = truncated(network)
    assert isinstance(found, MultiExitNetwork)
    assert found.exits == EXITS
    for _ in range(2):  # and again: nothing is left over from the pass before
        for depth, prediction in zip(EXITS, found(**inputs), strict=True):
            assert prediction.shape == (2, 4, 8, 8), "the variance's channels are not cut off"
            torch.testing.assert_close(prediction, expected[depth])
    assert float((expected[1] - expected[3]).abs().max()) > 0.01
    assert float((expected[3] - expected[4]).abs().max()) > 0.01


@pytest.mark.parametrize("exits", [(4,), (2, 4), (1, 2, 3, 4)])
def test_an_exit_predicts_the_same_whatever_the_others_are(exits: tuple[int, ...]) -> None:
    network, inputs = dit()
    expected = {depth: really_cut(network, inputs, depth) for depth in exits}
    for depth, found in zip(exits, truncated(network, exits)(**inputs), strict=True):
        torch.testing.assert_close(found, expected[depth])


@pytest.mark.parametrize("make", NETWORKS)
def test_the_weights_keep_the_names_of_the_module(make: Make) -> None:
    network, _ = make()
    names = list(network.state_dict())
    assert list(truncated(network).state_dict()) == [f"network.{name}" for name in names]


def block_runs(network: nn.Module) -> list[int]:
    """How often each block's work is done, counted by a hook on a part of it."""
    runs = [0] * 4

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            runs[index] += 1

        return hook

    for index, block in enumerate(cast(Any, network).transformer_blocks):
        block.attn1.register_forward_pre_hook(count(index))
    return runs


@pytest.mark.parametrize("make", NETWORKS)
def test_called_plainly_every_exit_runs_from_the_start(make: Make) -> None:
    network, inputs = make()
    runs = block_runs(network)
    truncated(network)(**inputs)
    assert runs == [sum(index < depth for depth in EXITS) for index in range(4)]


@pytest.mark.parametrize("make", NETWORKS)
def test_a_block_may_run_once_for_all_exits_outside_of_an_export_too(make: Make) -> None:
    network, inputs = make()
    cut = truncated(network)
    runs = block_runs(network)
    with torch.no_grad():
        expected = cut(**inputs)
        before = list(runs)
        with cut.each_block_once():
            found = cut(**inputs)
    assert [now - then for now, then in zip(runs, before, strict=True)] == [1] * len(runs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("make", NETWORKS)
def test_exported_every_block_runs_once_for_all_exits(make: Make) -> None:
    network, inputs = make()
    found = truncated(network)
    expected = found(**inputs)
    program = torch.export.export(found, (), inputs)
    names = program.graph_signature.inputs_to_parameters
    uses = {
        names[node.name].removeprefix("network."): len(node.users)
        for node in program.graph.find_nodes(op="placeholder")
        if node.name in names
    }
    # DiT's head reads the first block's embedders, once an exit.
    inside = {
        name: count
        for name, count in uses.items()
        if name.startswith("transformer_blocks.") and ".0.norm1.emb." not in name
    }
    assert len(inside) >= 4 * 12
    assert set(inside.values()) == {1}
    attentions = program.graph.find_nodes(
        op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default
    )
    assert len(list(attentions)) == (4 if make is dit else 8)
    exported = program.module()(**inputs)
    for one, other in zip(exported, expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(found(**inputs), expected, strict=True):
        assert torch.equal(one, other), "export leaves nothing behind"


class Chain(nn.Module):
    """Linear blocks in a row; what it returns is up to ``pack``."""

    def __init__(self, pack: Callable[[Tensor], Any] = lambda x: x) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Sequential(nn.Linear(3, 3), nn.SiLU())
        self.pack = pack
        randomised(self)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        x = x + t[:, None]
        for block in self.blocks:
            x = block(x)
        return self.pack(self.head(x))


def chain_at(network: Chain, depth: int, x: Tensor, t: Tensor) -> Tensor:
    x = x + t[:, None]
    for block in list(network.blocks)[:depth]:
        x = block(x)
    return cast(Tensor, network.head(x))


def cut(network: nn.Module, blocks: str = "blocks", **arguments: str) -> Truncated:
    return Truncated(network, exits=(1, 2, 4), blocks=blocks, call=Call(arguments))


def given() -> dict[str, Tensor]:
    torch.manual_seed(4)
    return {"x": torch.randn(2, 3), "t": torch.tensor([0.25, 0.5])}


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, None],
        lambda x: (x, "more", 1),
        lambda x: {"sample": x},
        lambda x: {"other": None, "sample": x},
        lambda x: OrderedDict(prediction=x, other=None),
    ],
    ids=["alone", "tuple", "list", "longer", "sample", "among", "first"],
)
def test_the_prediction_is_found_in_what_a_module_returns(pack: Callable[[Tensor], Any]) -> None:
    network = Chain(pack)
    expected = [chain_at(network, depth, **given()) for depth in (1, 2, 4)]
    found = cut(network)(**given())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("pack", "kind"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: 3.5, "float"),
        (lambda x: (), "tuple"),
        (lambda x: ("words", x), "str"),
        (lambda x: {}, "NoneType"),
        (lambda x: {"sample": "words"}, "str"),
        (lambda x: ((x,),), "tuple"),
    ],
    ids=["none", "number", "empty", "words", "nothing", "wrong sample", "nested"],
)
def test_a_module_that_returns_something_else_is_refused(
    pack: Callable[[Tensor], Any], kind: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        cut(Chain(pack))(**given())
    assert caught.value.found == f"a network that returns {kind}"


class TwoStreams(nn.Module):
    """Blocks that take and return two things, as image and text in joint attention."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, image: Tensor, *, text: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.cat([image, text], dim=-1)
            return image + self.image(both), text + self.text(both)

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks: nn.Sequential = nn.Sequential(*(self.Block() for _ in range(depth)))
        randomised(self)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            x, text = block(x, text=text)
        return x * text + t[:, None]


def test_blocks_may_return_several_things() -> None:
    network, inputs = TwoStreams(), {**given(), "text": torch.randn(2, 3)}
    expected = []
    for depth in (1, 2, 4):
        short = copy.deepcopy(network)
        short.blocks = nn.Sequential(*list(network.blocks)[:depth])
        expected.append(short(**inputs))
    for one, other in zip(cut(network)(**inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


class Between(Chain):
    """Adds the timestep after every block."""

    def forward(self, x: Tensor, t: Tensor) -> Any:
        for block in self.blocks:
            x = block(x) + t[:, None]
        return self.head(x)


def test_beyond_an_exit_what_its_last_block_returned_is_handed_on() -> None:
    network, (x, t) = Between(), given().values()
    first, second, third, fourth = network.blocks
    shallow = first(x) + t[:, None]
    middle = second(shallow) + t[:, None]
    deep = fourth(third(middle) + t[:, None]) + t[:, None]
    for found, last in zip(cut(network)(x=x, t=t), (shallow, middle, deep), strict=True):
        torch.testing.assert_close(found, network.head(last))


class Nested(Chain):
    """Takes its inputs in dictionaries, and records them."""

    def forward(self, noise: Tensor, added: dict[str, Any], extra: dict[str, Any]) -> Any:  # type: ignore[override]
        self.seen = (added, extra)
        return super().forward(noise, added["when"])


def test_a_dotted_argument_is_an_entry_of_a_dictionary() -> None:
    network, inputs = Nested(), given()
    names = {"x": "noise", "t": "added.when", "side": "added.size", "ratio": "extra.ratio"}
    side, ratio = torch.ones(2, 2), torch.zeros(2, 1)
    expected = [chain_at(network, depth, **inputs) for depth in (1, 2, 4)]
    found = cut(network, **names)(**inputs, side=side, ratio=ratio)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    added, extra = network.seen
    assert added.keys() == {"when", "size"}
    assert extra.keys() == {"ratio"}
    assert added["when"] is inputs["t"]
    assert added["size"] is side
    assert extra["ratio"] is ratio


@pytest.mark.parametrize("name", ["", "block", "blocks.0", "head.0.weight", "blocks.4", "pack"])
def test_a_wrong_list_of_blocks_is_refused_with_the_lists_there_are(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        cut(Chain(), name)
    assert caught.value.found == f"network.blocks = {name!r}"
    assert caught.value.expected == "a list of blocks, such as ['blocks', 'head']"
    assert "Chain" in caught.value.remedy


def test_a_module_without_a_list_of_blocks_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected a list of blocks; name the list in Linear"):
        cut(nn.Linear(3, 3))


def test_an_empty_list_of_blocks_is_refused() -> None:
    network = Chain()
    network.blocks = nn.ModuleList()
    with pytest.raises(RecipeError, match=r"found network\.blocks = 'blocks'"):
        cut(network)


def test_a_list_with_a_repeated_block_is_refused() -> None:
    network = Chain()
    network.blocks[2] = network.blocks[0]
    with pytest.raises(RecipeError, match="a block that is in 'blocks' more than once"):
        cut(network)


@pytest.mark.parametrize("exits", [(), (0, 4), (1, 2), (1, 5), (2, 1, 4)])
def test_exits_must_fit_the_list(exits: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match="from 1 to 4"):
        Truncated(Chain(), exits=exits, blocks="blocks", call=Call({}))


@pytest.mark.parametrize("place", ["block", "head"])
def test_after_a_failure_inside_the_module_the_next_call_starts_afresh(place: str) -> None:
    network, inputs = Chain(), given()
    expected = [chain_at(network, depth, **inputs) for depth in (1, 2, 4)]
    found = cut(network)
    failing = {"block": network.blocks[1], "head": network.head}[place]
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # while the second exit runs
            raise KeyError("as if interrupted")

    hook = failing.register_forward_pre_hook(fail)
    with pytest.raises(KeyError, match="as if interrupted"):
        found(**{**inputs, "x": inputs["x"] + 1})
    hook.remove()
    for one, other in zip(found(**inputs), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_of_every_exit_reach_its_own_blocks_only() -> None:
    network = Chain().requires_grad_(True)
    for index, prediction in enumerate(cut(network)(**given())):
        network.zero_grad()
        prediction.sum().backward()
        reached = [block.weight.grad is not None for block in network.blocks]
        assert reached == [position < (1, 2, 4)[index] for position in range(4)]


def test_the_module_itself_stays_usable() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for block in self.blocks:
                x = torch.tanh(block(x))
            return x

    network = Plain()
    x, t = torch.randn(2, 4, 2), torch.zeros(4)
    before = [network(each, t) for each in x]
    cut = Truncated(network, exits=(1, 3), blocks="blocks", call=Call({}))
    cut(x=x[0], t=t)
    for each, expected in zip(x, before, strict=True):
        torch.testing.assert_close(network(each, t), expected)


@pytest.mark.parametrize("order", [(0, 1, 0, 1, 2), (2, 1, 0), (1, 2), (0, 0, 1, 2)])
def test_blocks_out_of_order_are_refused(order: tuple[int, ...]) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            for index in order:
                x = self.blocks[index](x)
            return x

    cut = Truncated(Odd(), exits=(1, 3), blocks="blocks", call=Call({}))
    with pytest.raises(RecipeError, match="in the order of their list"):
        cut(x=torch.zeros(1, 2), t=torch.zeros(1))
