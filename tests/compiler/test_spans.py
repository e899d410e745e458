"""Where spans begin and end in a graph, and what crosses: of any network."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.export import bundle_from_recipe
from eecompile.compiler.graph.cuts import marks
from eecompile.compiler.graph.merge import merged_exits
from eecompile.errors import EecompileError, RecipeError, TraceError, VerificationError
from eecompile.programs.choice import Exit, Span
from eecompile.recipe import load_recipe
from eecompile.runtime.sampler import Sampler
from eecompile.runtime.trajectory.plan import Plan
from eecompile.store.bundle import open_bundle, open_engine_set
from eecompile.store.manifest import SpanPlan
from eecompile.store.target import Target, load_target
from tests.conftest import RECIPE, ROOT, TARGETS, Beside

WIDTH = 6
NETWORK = '''
import torch
from torch import nn

class Block(nn.Module):
    """Image and text exchange what they know; the text is shorter."""

    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, image, text, scale):
        mixed = image.mean(1, keepdim=True) + text.mean(1, keepdim=True)
        image = image + torch.tanh(self.image(image + mixed)) * scale
        return image, text + torch.tanh(self.text(text + mixed))

class TwoStreams(nn.Module):
    def __init__(self, exits):
        super().__init__()
        self.exits = tuple(exits)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.inwards = nn.Linear(6, 6)
        self.merge = nn.Linear(6, 6)

    def forward(self, x, t, text):
        scale = torch.cos(t / 100)[:, None, None]
        image, first = self.inwards(x), None
        predictions = []
        for depth, block in enumerate(self.blocks, 1):
            image, text = block(image, text, scale)
            first = image[:, :1] * 2 if first is None else first
            if depth in self.exits:
                predictions.append(self.merge(image + text.mean(1, keepdim=True)) + first)
        return tuple(predictions)
'''
TOML = """
name = "two"
[network]
factory = "FACTORY:TwoStreams"
checkpoint = "w.safetensors"
exits = [2, 4]
[state]
shape = [5, 6]
[conditions.text]
dtype = "float32"
shape = [3, 6]
default = 0.5
[sampling]
steps = 6
"""


def recipe_of(folder: Path, beside: Beside, more: str = "", network: str = NETWORK) -> Path:
    name = beside(network)
    path = folder / "recipe.toml"
    path.write_text(TOML.replace("FACTORY", name).replace("[state]", f"{more}\n[state]", 1))
    scope: dict[str, Any] = {}
    exec(network, scope)
    torch.manual_seed(1)
    save_file(scope["TwoStreams"]((2, 4)).state_dict(), folder / "w.safetensors")
    return path


def test_both_streams_and_what_passes_by_leave_a_span(tmp_path: Path, beside: Beside) -> None:
    """The image adds to the image, the text to the text; and the first block's to the heads."""
    path = recipe_of(tmp_path, beside)
    bundle, engines = tmp_path / "bundle", tmp_path / "engines"
    assert bundle_from_recipe(path, bundle).interface.cuts == (0, 1, 2, 3, 4)
    engine_set_from_bundle(bundle, TARGETS["chained"], engines)
    manifest = open_engine_set(engines)
    spans = {(span.start, span.stop): span for span in manifest.spans}
    assert all((span.relative_error or 0.0) < 1e-5 for span in spans.values())

    def shapes(*cuts: int) -> list[tuple[tuple[int, ...], bool]]:
        return sorted((each.shape, bool(each.enters)) for each in spans[cuts].tensors)

    assert shapes(1, 3) == [((3, WIDTH), True), ((5, WIDTH), True)]
    # The text that enters block 1 is the caller's: its span keeps what leaves. The exits read
    # the image of block 1, which passes by the others.
    image, text = ((5, WIDTH), True), ((3, WIDTH), False)
    assert shapes(0, 1) == [text, image]
    assert shapes(0, 3) == [text, image, image]
    for tensor in spans[1, 3].tensors:  # image to image, text to text
        assert tensor.enters in {each.leaves for each in spans[0, 1].tensors}
    with Sampler.open(engines) as sampler:
        choices = iter([Exit(4), Exit(4), Exit(4), Span(1, 3, 1, 4), Span(0, 1, 2, 4), Exit(2)])
        program = sampler.program("ddim", 6, "full").with_choices(lambda time: next(choices))
        samples = sampler.sample(4, solver=program)
        full = sampler.sample(4, schedule="full")
        assert 0 < np.abs(samples - full).max() < 0.01 * np.abs(full).max()
        alone = sampler.sample(1, solver=program, first=2)
        np.testing.assert_allclose(alone[0], samples[2], rtol=1e-4, atol=1e-5)
        both, text = 4 * WIDTH * (5 + 3), 4 * WIDTH * 3
        check_memory(sampler, Span(1, 3, 0, 4), kept=both, entering=both)
        check_memory(sampler, Span(0, 1, 0, 4), kept=both, entering=both - text)


def check_memory(sampler: Sampler, span: Span, kept: int, entering: int) -> None:
    """Pass when trajectories allocate for a span what docs/choices.md says.

    Args:
        sampler: of an engine set with spans.
        span: skipped in every second step, with each order.
        kept: bytes of what leaves it, of one sample.
        entering: bytes of what enters it and has a counterpart that leaves.
    """
    for (n, guided), order in product(((1, 0), (3, 0), (2, 2), (3, 1)), range(3)):
        skips = msgspec.structs.replace(span, order=order)
        choices = [Exit(span.depth)] * 3 + [skips, Exit(span.depth)] * 4
        with_spans, without = (
            allocated(sampler, each, n, guided)
            for each in (choices, [Exit(span.depth)] * len(choices))
        )
        formula = (order + 1) * (n + guided) * kept
        passing = (n + guided) * (kept + entering)
        assert with_spans - without == formula + passing, (n, guided, order)


def allocated(sampler: Sampler, choices: Sequence[Exit | Span], n: int, guided: int) -> int:
    """Bytes of the arrays that a trajectory makes, the factors of its sums aside."""
    taken = iter(choices)
    program = sampler.program("ddim", len(choices), "full").with_choices(lambda time: next(taken))
    interface = sampler.interface
    plan = Plan(
        program=program,
        interface=interface,
        shape=interface.state.shape,
        size=n,
        guided=guided,
        apart=n + guided > sampler.engine.max_batch,
    )
    arrays = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    tracemalloc.start()
    try:
        with sampler.engine.trajectory(plan):
            snapshot = tracemalloc.take_snapshot().filter_traces([arrays])
    finally:
        tracemalloc.stop()
    return sum(trace.size for trace in snapshot.traces if trace.size > 4)


@pytest.mark.parametrize(
    ("name", "span", "tensors"),
    [
        ("dit", Span(1, 4, 0, 4), [4 * 32]),
        ("dit", Span(0, 1, 0, 2), [4 * 32]),
        ("uvit", Span(2, 3, 0, 5), [17 * 32]),
        # Besides the hidden state, what blocks 1 and 2 hand to 5 and 4.
        ("uvit", Span(0, 3, 0, 5), [17 * 32] * 3),
        ("uvit", Span(0, 2, 0, 5), [17 * 32] * 2),
    ],
)
def test_kept_tensors_take_what_the_documents_say(
    name: str, span: Span, tensors: list[int], network_sets: Callable[[str], Path]
) -> None:
    """A DiT and a U-ViT with long skips; the network with two streams is above."""
    with Sampler.open(network_sets(name) / "chained") as sampler:
        numbers = 4 * sum(tensors)
        # One tensor enters, to which all that leave add.
        check_memory(sampler, span, kept=numbers, entering=4 * tensors[0])


SILENT = NETWORK.replace("self.blocks", "self.layers")


def test_a_network_that_does_not_say_its_blocks_has_no_cuts(tmp_path: Path, beside: Beside) -> None:
    assert (
        bundle_from_recipe(
            recipe_of(tmp_path, beside, network=SILENT), tmp_path / "a"
        ).interface.cuts
        == ()
    )
    asked = recipe_of(tmp_path, beside, "cuts = [1, 3]", SILENT)
    with pytest.raises(TraceError, match="an attribute blocks that lists its 4 modules"):
        bundle_from_recipe(asked, tmp_path / "b")
    scheduled = asked.read_text().replace("cuts = [1, 3]", "")
    asked.write_text(scheduled + '\n[schedules]\nfast = ["4/1-3:0", 4]\n')
    with pytest.raises(EecompileError, match="no spans: the network has no cuts"):
        bundle_from_recipe(asked, tmp_path / "c")


def test_a_block_that_does_nothing_is_no_span(tmp_path: Path, beside: Beside) -> None:
    idle = NETWORK.replace(
        "enumerate(self.blocks, 1):",
        "enumerate(self.blocks, 1):\n            block.idle = depth == 3",
    )
    idle = idle.replace(
        "        mixed =", "        if self.idle:\n            return image, text\n        mixed ="
    )
    path = recipe_of(tmp_path, beside, "cuts = [2, 3]", idle)
    with pytest.raises(TraceError, match=r"blocks 3 to 3, between cuts 2 and 3; .* network.cuts"):
        bundle_from_recipe(path, tmp_path / "bundle")


def test_blocks_may_return_predictions(tmp_path: Path, beside: Beside) -> None:
    """Each exit hands on the image of its last block."""
    bare = NETWORK.replace("self.merge(image + text.mean(1, keepdim=True)) + first", "image")
    path = recipe_of(tmp_path, beside, network=bare)
    bundle = tmp_path / "bundle"
    assert bundle_from_recipe(path, bundle).interface.cuts == (0, 1, 2, 3, 4)
    engine_set_from_bundle(bundle, TARGETS["chained"], tmp_path / "engines")
    spans = open_engine_set(tmp_path / "engines").spans
    assert len(spans) == 10
    assert all((span.relative_error or 0.0) < 1e-5 for span in spans)


@pytest.mark.parametrize("cuts", [[3, 3], [6, 3], [-1, 3], [3, 13]])
def test_cuts_through_nothing_are_refused(cuts: list[int], tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = RECIPE.read_text().replace("[network.options]", f"cuts = {cuts}\n[network.options]")
    path.write_text(text)
    with pytest.raises(RecipeError, match="ascending numbers of blocks from 0 to 12"):
        load_recipe(path)


@pytest.mark.parametrize("cuts", ["[1.5]", '["3"]', "3"])
def test_cuts_through_a_block_are_refused(cuts: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = RECIPE.read_text().replace("[network.options]", f"cuts = {cuts}\n[network.options]")
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"Expected `.*network.cuts.*; fix that key"):
        load_recipe(path)


FREE = "resizable = { axes = [1], min = 2, max = 8, multiple = 2 }"
SPANS = '\n[schedules]\nfast = ["4/1-3:0", 4]\n'


@pytest.mark.parametrize(
    ("cuts", "schedules", "found"),
    [("cuts = [1, 3]", "", "network.cuts"), ("", SPANS, "a schedule with spans")],
)
def test_networks_without_known_blocks_or_lengths_have_no_spans(
    cuts: str, schedules: str, found: str, tmp_path: Path
) -> None:
    """Ready-made files, and samples of any size: refused where spans are asked for."""
    path = tmp_path / "recipe.toml"
    made = f'factory = "m:F"\ncheckpoint = "w"\nexits = [2, 4]\n{cuts}\n[state]\nshape = [1, 8]\n'
    path.write_text(f'name = "n"\n[network]\n{made}{FREE}\n{schedules}')
    with pytest.raises(
        RecipeError, match=f"{found} beside state.resizable .* one shape, for spans"
    ):
        load_recipe(path)
    ready = f'files = ["a.onnx", "b.onnx"]\nexits = [2, 4]\n{cuts}\n[state]\nshape = [1, 8]\n'
    path.write_text(f'name = "n"\n[network]\n{ready}{schedules}')
    with pytest.raises(RecipeError, match=f"{found} beside network.files .* are not known; remove"):
        load_recipe(path)
    for silent in (made + FREE, ready):
        path.write_text(f'name = "n"\n[network]\n{silent}'.replace(cuts, ""))
        assert not load_recipe(path).schedules


def test_default_cuts_are_the_exits_and_quarters_far_from_them() -> None:
    cuts = {
        path.stem: load_recipe(path).network.cuts_or_default
        for path in (ROOT / "export").glob("*.toml")
    }
    assert cuts["fashion-dit"] == (0, 3, 6, 9, 12)
    assert cuts["dit-xl2-256"] == (0, 7, 12, 16, 20, 24, 28)


def test_other_cuts_than_the_schedules_are_refused(tmp_path: Path, small_recipe: Path) -> None:
    path = small_recipe.with_name("other-cuts.toml")
    text = small_recipe.read_text().replace("[network.options]", "cuts = [1, 4]\n[network.options]")
    path.write_text(text)
    bundle, engines = tmp_path / "bundle", tmp_path / "engines"
    assert bundle_from_recipe(path, bundle).interface.cuts == (1, 4)
    engine_set_from_bundle(bundle, TARGETS["chained"], engines)
    assert len(open_engine_set(engines).segments) == 6  # up to 1, up to 4 in two, three heads
    with Sampler.open(engines) as sampler:
        sampler.sample(1, steps=4, schedule=["4/1-4:0", "4"])
        with pytest.raises(EecompileError, match=r"needs a cut at 3; expected one of the cuts"):
            sampler.sample(1, steps=4, schedule=["4/1-3:0", "4"])


def test_marks_survive_the_bundle(small_bundle: Path) -> None:
    exits = open_bundle(small_bundle).interface.exits
    found = [mark for node in merged_exits(small_bundle, exits).graph for mark in marks(node)]
    assert sorted({block for block, _ in found}) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_what_crosses_in_its_own_type(
    small_bundle: Path, tmp_path: Path, precision: str
) -> None:
    """Plans of TensorRT-RTX, whose graphs are verified in ONNX Runtime."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("modelopt")
    text = (ROOT / "engines" / f"rtx-{precision}.toml").read_text() if precision == "fp16" else ""
    target = Target(
        name="half",
        backend="tensorrt-rtx",
        precision=precision,  # type: ignore[arg-type]
        layout="chained",
        tolerance=load_target(ROOT / "engines" / "tensorrt-bf16.toml").tolerance,
    )
    assert not text or "chained" in text
    manifest = engine_set_from_bundle(small_bundle, target, tmp_path / "engines").manifest
    kinds = {tensor.dtype for span in manifest.spans for tensor in span.tensors}
    assert kinds == {{"fp16": "float16", "bf16": "bfloat16"}[precision]}
    assert all(0 <= (span.relative_error or 0.0) < 2e-3 for span in manifest.spans)


def test_a_span_that_is_wrong_is_noticed(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if what enters were another tensor than what leaves adds to."""
    from eecompile.compiler import build

    genuine = build.span_plans

    def wrong(*args: Any) -> tuple[SpanPlan, ...]:
        found = {(span.start, span.stop): span for span in genuine(*args)}
        tensors = found[0, 1].tensors
        found[1, 3] = msgspec.structs.replace(found[1, 3], tensors=tensors)
        return tuple(found.values())

    monkeypatch.setattr(build, "span_plans", wrong)
    with pytest.raises(VerificationError, match="blocks 2 to 3 are skipped and add exactly"):
        engine_set_from_bundle(small_bundle, TARGETS["chained"], tmp_path / "engines")
