"""Encoders and decoders beside a network: exported, built, and run against their libraries."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from eecompile import Condition, FakeEngine, Interface, Sampler, SampleRequest, State
from eecompile.compiler.build import engine_set_from_bundle
from eecompile.compiler.companion_export import export_companions
from eecompile.compiler.companions import build_companions
from eecompile.compiler.export import bundle_from_recipe, interface_from_recipe
from eecompile.compiler.progress import silent
from eecompile.compiler.sessions import run_session, session_from_graph
from eecompile.errors import (
    BackendError,
    CheckpointError,
    ConditionError,
    DigestError,
    EecompileError,
    RecipeError,
    TraceError,
    UsageError,
)
from eecompile.programs.companions import Given, PromptEncoder
from eecompile.recipe import ExportRecipe, NetworkRecipe, load_recipe
from eecompile.runtime.companions import Companions, prompted
from eecompile.runtime.tiles import decoded_in_tiles
from eecompile.store.bundle import open_bundle, open_engine_set, write_manifest
from eecompile.store.companions import Companion, CompanionTarget, DecoderRecipe
from eecompile.store.target import DEFAULT_TARGET, Target, load_target
from tests import pipelines
from tests.conftest import ROOT, Shared
from tests.pipelines import autoencoder, clip, clip_words, random_weights, t5, t5_words
from tests.test_import import COMMAND_LINE, COMPILE_TIME, run, without

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' own
LENGTH = 12  # tokens of each encoder
PROMPTS = ["a photo of the red cat", "", "a dog in snow"]
LONG = "a dog under the blue sky, in the snow of the red sky"
SCALING, SHIFT = 0.18215, 0.25
NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, exits):
        super().__init__()
        self.exits = exits
        self.text = nn.Linear(16, 4)
        self.mix = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, t, text, kept):
        told = (self.text(text) * kept[..., None]).mean(1)[:, :, None, None]
        return (self.mix(x) * (1 + t[:, None, None, None] / 1000) + told,)
"""
RECIPE = f"""
name = "tiny"

[network]
factory = "tiny_net:Net"
checkpoint = "net.safetensors"
exits = [1]

[state]
shape = [4, 8, 8]

[conditions.text]
dtype = "float32"
shape = [{2 * LENGTH}, 16]

[conditions.kept]
dtype = "int64"
shape = [{2 * LENGTH}]
range = [0, 1]

[sampling]
steps = 3
guidance = 3.0

[encoders.clip]
factory = "transformers:CLIPTextModel"
checkpoint = "clip"
tokenizer = "clip_tokenizer"
length = {LENGTH}
arguments = {{ ids = "input_ids" }}
gives.text = {{ output = "hidden_states.-2" }}
gives.kept = {{ output = "mask" }}

[encoders.t5]
factory = "transformers:T5EncoderModel"
checkpoint = "t5"
tokenizer = "t5_tokenizer/tokenizer.json"
padding = "<pad>"
length = {LENGTH}
gives.text = {{ output = "last_hidden_state", at = [{LENGTH}, 0] }}
gives.kept = {{ output = "mask", at = [{LENGTH}] }}

[decoder]
factory = "diffusers:AutoencoderKL"
checkpoint = "vae"
scaling = {SCALING}
shift = {SHIFT}
"""


def write(folder: Path) -> Path:
    """A network that reads two encoders' outputs, and its companions, in a new folder."""
    folder.mkdir()
    (folder / "tiny_net.py").write_text(NETWORK)
    made: dict[str, Any] = {}
    exec(NETWORK, made)
    save_file(random_weights(made["Net"]((1,))).state_dict(), folder / "net.safetensors")
    clip(length=LENGTH).save_pretrained(folder / "clip")
    clip_words(LENGTH).save_pretrained(folder / "clip_tokenizer")
    t5().save_pretrained(folder / "t5")
    t5_words(LENGTH).save_pretrained(folder / "t5_tokenizer")
    autoencoder().save_pretrained(folder / "vae")
    (folder / "recipe.toml").write_text(RECIPE)
    return folder / "recipe.toml"


@pytest.fixture(scope="module")
def folder(shared: Shared) -> Path:
    """The recipe, its bundle, and engine sets for two backends; not to be written to."""

    def make(place: Path) -> None:
        bundle_from_recipe(write(place), place / "bundle")
        for target in (DEFAULT_TARGET, load_target(ROOT / "engines" / "cpu-openvino.toml")):
            engine_set_from_bundle(place / "bundle", target, place / target.name)

    return shared("companions", make)


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the recipe and its files, with texts of the recipe replaced."""

    def change(*replacements: tuple[str, str]) -> Path:
        place = tmp_path / "changed"
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("bundle", "cpu*"))
        text = RECIPE
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        (place / "recipe.toml").write_text(text)
        return place / "recipe.toml"

    return change


@pytest.fixture(params=["cpu", "cpu-openvino"])
def engines(folder: Path, request: pytest.FixtureRequest) -> Path:
    return folder / str(request.param)


def expected(folder: Path, prompts: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    """What transformers' own models make of prompts."""
    found: dict[str, list[torch.Tensor]] = {"text": [], "kept": []}
    for name, kind in (("clip", CLIPTextModel), ("t5", T5EncoderModel)):
        words = AutoTokenizer.from_pretrained(folder / f"{name}_tokenizer")
        given = words(
            prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        )
        model = kind.from_pretrained(folder / name).eval()
        mask = None if name == "clip" else given.attention_mask
        with torch.no_grad():
            out = model(given.input_ids, attention_mask=mask, output_hidden_states=True)
        found["text"].append(out.hidden_states[-2] if name == "clip" else out.last_hidden_state)
        found["kept"].append(given.attention_mask)
    return {name: torch.cat(parts, dim=1).numpy() for name, parts in found.items()}


def test_prompts_become_what_the_library_makes_of_them(folder: Path, engines: Path) -> None:
    with Sampler.open(engines) as sampler:
        assert sampler.companions is not None
        found = sampler.companions.encoded(PROMPTS)
    for name, value in expected(folder, PROMPTS).items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert found["kept"].dtype == np.int64
    assert not np.allclose(found["text"][0], found["text"][1])


def test_a_template_is_read_and_its_tokens_are_left_out(changed: Callable[..., Path]) -> None:
    more = 'padding = "<pad>"\ntemplate = "a photo of the {}"\ndrop_template = true\nlower = true'
    path = changed(('padding = "<pad>"', more))
    bundle_from_recipe(path, path.parent / "bundle")
    engine_set_from_bundle(path.parent / "bundle", DEFAULT_TARGET, path.parent / "cpu")
    prompts = ["red Cat", "a dog in snow in snow in snow in snow in snow in snow"]
    with Sampler.open(path.parent / "cpu") as sampler:
        assert sampler.companions is not None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the second is cut
            found = sampler.companions.encoded(prompts)
            plain = sampler.companions.encoded(prompts, negative=True)
            again = sampler.companions.encoded(prompts)
    np.testing.assert_array_equal(found["text"], again["text"])
    words = AutoTokenizer.from_pretrained(path.parent / "t5_tokenizer")
    model = T5EncoderModel.from_pretrained(path.parent / "t5").eval()
    before = len(words("a photo of the", add_special_tokens=False).input_ids)
    kept = {"a photo of the ": [*range(before, before + LENGTH)], "": [*range(LENGTH)]}
    for text, rows in kept.items():
        given = words(
            [text + prompt.lower() for prompt in prompts],
            padding="max_length",
            max_length=LENGTH + before,
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            right = model(**given).last_hidden_state[:, rows].numpy()
        ours = found if text else plain
        np.testing.assert_allclose(ours["text"][:, LENGTH:], right, atol=1e-5)
        np.testing.assert_array_equal(ours["kept"][:, LENGTH:], given.attention_mask[:, rows])


def test_a_template_without_a_place_for_the_prompt_is_refused(
    changed: Callable[..., Path],
) -> None:
    path = changed(('padding = "<pad>"', 'padding = "<pad>"\ntemplate = "a photo"'))
    with pytest.raises(RecipeError, match=r"of the template 'a photo', without one \{\}"):
        load_recipe(path)


def test_samples_are_decoded_as_by_the_library(folder: Path, engines: Path) -> None:
    latents = np.random.default_rng(0).standard_normal((6, 4, 8, 8), np.float32)
    with Sampler.open(engines) as sampler:
        found = sampler.decode(latents)  # six are more than the engine takes at a time
        prompted = sampler.sample(prompt=PROMPTS, seed=2)
        decoded = sampler.sample(prompt=PROMPTS, seed=2, decode=True)
        np.testing.assert_array_equal(sampler.decode(prompted), decoded)
    model = diffusers.AutoencoderKL.from_pretrained(folder / "vae").eval()
    with torch.no_grad():
        right = model.decode(torch.from_numpy(latents) / SCALING + SHIFT).sample.numpy()
    assert found.shape == (6, 3, 16, 16)
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def without_encoders(*lines: str, state: str = "shape = [4, 8, 8]") -> str:
    """The recipe with conditions that are given, and lines more of the decoder."""
    start, end = RECIPE.index("[encoders.clip]"), RECIPE.index("[decoder]")
    text = RECIPE[:start] + RECIPE[end:] + "\n".join(lines)
    return text.replace("shape = [4, 8, 8]", state)


GIVEN = {"text": np.ones((24, 16)), "kept": np.ones(24, int), "guidance": 1.0}


@pytest.mark.parametrize("free", [False, True])
def test_large_samples_are_decoded_in_tiles(
    changed: Callable[..., Path], tmp_path: Path, free: bool
) -> None:
    """Of the length that the decoder was exported for, or any that is asked for."""
    path = changed()
    resizable = "shape = [4, 8, 8]\nresizable = { axes = [1, 2], min = 4, max = 24, multiple = 2 }"
    text = without_encoders(state=resizable) if free else without_encoders("tile = 8")
    path.write_text(text if free else text.replace("shape = [4, 8, 8]", "shape = [4, 20, 8]"))
    bundle_from_recipe(path, tmp_path / "bundle")
    engine_set_from_bundle(tmp_path / "bundle", DEFAULT_TARGET, tmp_path / "engines")
    model = diffusers.AutoencoderKL.from_pretrained(path.parent / "vae").eval()

    def decode(latents: Any) -> Any:
        with torch.no_grad():
            return model.decode(torch.from_numpy(latents) / SCALING + SHIFT).sample.numpy()

    with Sampler.open(tmp_path / "engines") as sampler:
        latents = sampler.sample(3, shape=(4, 20, 8), **GIVEN)
        found = sampler.decode(latents, 8)
        if free:
            whole = sampler.sample(3, shape=(4, 20, 8), decode=True, **GIVEN)
            np.testing.assert_allclose(whole, decode(latents), atol=1e-5 * np.abs(whole).max())
            with pytest.raises(
                UsageError, match=r"of 26 for .*; expected 4 to 24, in multiples of"
            ):
                sampler.decode(latents, 26)
        else:
            np.testing.assert_array_equal(found, sampler.decode(latents))
            with pytest.raises(UsageError, match="expected tiles of 8, for which it was exported"):
                sampler.decode(latents, 10)
    right = decoded_in_tiles(decode, latents, 8, 2, 1)
    assert found.shape == (3, 3, 40, 16)
    np.testing.assert_allclose(found, right, atol=1e-5 * np.abs(right).max())


def test_fewer_are_decoded_together_where_memory_is_short(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).standard_normal((7, 4, 8, 8), np.float32)
    sizes: list[int] = []
    with Sampler.open(folder / "cpu") as sampler:
        right = sampler.decode(latents)
        assert sampler.companions is not None
        engine = sampler.companions._engines["decoder"]
        genuine = engine.run

        def run(inputs: Any) -> Any:
            sizes.append(len(inputs["latents"]))
            if sizes[-1] > most:
                raise BackendError(found="no memory", expected="some", remedy="less")
            return genuine(inputs)

        monkeypatch.setattr(engine, "run", run)
        most = 0  # a decoder that fails for another reason is not the slower after it
        with pytest.raises(BackendError):
            sampler.decode(latents)
        assert sizes == [4, 2, 1]
        sizes, most = [], 1
        np.testing.assert_allclose(sampler.decode(latents), right, atol=1e-5)
        assert sizes == [4, 2, *[1] * 7]
        with pytest.raises(UsageError, match="expected whole samples, for which it was exported"):
            sampler.decode(latents, 4)


def test_a_prompt_stands_for_conditions_and_the_empty_one_for_none(folder: Path) -> None:
    given, nothing, other = (expected(folder, [text]) for text in ("a cat", "", "snow"))
    with Sampler.open(folder / "cpu") as sampler:
        by_prompt = sampler.sample(4, prompt="a cat")
        by_hand = sampler.sample(
            4,
            text=given["text"][0],
            kept=given["kept"][0],
            nulls={name: value[0] for name, value in nothing.items()},
        )
        away = sampler.sample(4, prompt="a cat", negative="snow")
        away_by_hand = sampler.sample(
            4,
            text=given["text"][0],
            kept=given["kept"][0],
            nulls={name: value[0] for name, value in other.items()},
        )
        plain = sampler.sample(4, prompt="a cat", guidance=1.0)
    size = float(np.abs(by_hand).max())
    np.testing.assert_allclose(by_prompt, by_hand, atol=1e-5 * size)
    np.testing.assert_allclose(away, away_by_hand, atol=1e-5 * size)
    assert np.abs(by_prompt - away).max() > 1e-3 * size
    assert np.abs(by_prompt - plain).max() > 1e-3 * size


def test_what_is_given_beside_a_prompt_stays_in_guidance() -> None:
    class Encoding(Companions):
        def __init__(self) -> None:
            pass

        def encoded(self, prompts: Sequence[str], *, negative: bool = False) -> dict[str, Any]:
            assert negative == (prompts == [""])
            return {"text": np.array([[float(len(text))] for text in prompts])}

    conditions = {
        "text": Condition(dtype="float32", shape=(1,)),
        "size": Condition(dtype="float32", shape=(2,)),
        "label": Condition(dtype="int64", range=(0, 3), default=0, null=3),
        "style": Condition(dtype="int64", range=(0, 3), default=2),
        "cycle": Condition(dtype="int64", range=(0, 3), default="cycle", null=3),
    }
    interface = Interface(
        name="sized",
        exits=(1,),
        state=State(shape=(4,)),
        conditions=conditions,
        encoders={"words": PromptEncoder(length=4, gives={"text": Given(output="out")})},
    )
    asked = SampleRequest(n=2, guidance=2.0, conditions={"size": [[1, 2], [3, 4]], "label": 1})
    found = prompted(asked, interface, Encoding(), "a cat")
    assert found.conditions["text"] == [5]
    assert found.nulls == {"text": [0], "size": [[1, 2], [3, 4]], "style": 2}
    plain = prompted(msgspec.structs.replace(asked, guidance=1), interface, Encoding(), "a cat")
    assert plain.nulls == {}


def test_each_sample_may_have_a_prompt_of_its_own(folder: Path) -> None:
    with Sampler.open(folder / "cpu") as sampler:
        together = sampler.sample(prompt=PROMPTS, negative=["snow", "sky", "cat"])
        alone = sampler.sample(1, first=2, prompt=PROMPTS[2], negative="cat")
        steps = list(sampler.steps(prompt=PROMPTS, negative=["snow", "sky", "cat"]))
        with pytest.raises(UsageError, match=r"found 3 prompts for 2 samples"):
            sampler.sample(2, prompt=PROMPTS)
    assert together.shape == (3, 4, 8, 8)
    size = float(np.abs(together).max())
    np.testing.assert_allclose(together[2:], alone, atol=1e-5 * size)
    np.testing.assert_allclose(steps[-1].state, together, atol=1e-5 * size)


def test_a_prompt_is_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    genuine = Companions._encode

    def encode(self: Companions, prompts: list[str], *, negative: bool) -> None:
        encoded.extend(prompts)
        genuine(self, prompts, negative=negative)

    monkeypatch.setattr(Companions, "_encode", encode)
    with Sampler.open(folder / "cpu") as sampler:
        for _ in range(2):
            sampler.sample(prompt=["a cat", "a dog", "a cat"], negative="snow")
        assert encoded == ["a cat", "a dog", "snow"]
        assert sampler.companions is not None
        sampler.companions.encoded([f"a cat {index}" for index in range(70)])
        sampler.companions.encoded(["a cat"])
    assert encoded.count("a cat") == 2  # the first was forgotten meanwhile


def test_what_is_cut_of_a_long_prompt_is_said(folder: Path) -> None:
    with Sampler.open(folder / "cpu") as sampler:
        assert sampler.companions is not None
        with pytest.warns(UserWarning, match="more than the 12 tokens") as warned:
            found = sampler.companions.encoded([LONG])
    np.testing.assert_allclose(found["text"], expected(folder, [LONG])["text"], atol=1e-5)
    texts = {str(each.message).rpartition("see: ")[2] for each in warned}
    assert texts == {"'of the red sky'", "'the red sky'"}  # one mark, or two


def test_sampling_from_prompts_needs_neither_torch_nor_its_libraries(folder: Path) -> None:
    absent = (*COMPILE_TIME, *COMMAND_LINE, "transformers", "diffusers", "huggingface_hub")
    code = without(*absent) + (
        "import eecompile, sys\n"
        "with eecompile.Sampler.open(sys.argv[1]) as sampler:\n"
        "    print(sampler.sample(prompt='a cat', decode=True).shape)\n"
    )
    assert run(code, str(folder / "cpu")).split("\n")[0] == "(1, 3, 16, 16)"


def test_companions_are_opened_when_they_are_needed(folder: Path) -> None:
    code = without("tokenizers") + (
        "import eecompile, sys, numpy as np\n"
        "with eecompile.Sampler.open(sys.argv[1]) as sampler:\n"
        "    given = dict(text=np.zeros((24, 16)), kept=np.ones(24, int))\n"
        "    print(sampler.sample(**given, guidance=1.0, decode=True).shape)\n"
        "    print(sampler.sample(**given, nulls=given).shape)\n"
        "    try:\n"
        "        sampler.sample(prompt='a cat')\n"
        "    except eecompile.BackendError as error:\n"
        "        print(error)\n"
    )
    shapes = run(code, str(folder / "cpu")).splitlines()
    assert shapes[:2] == ["(1, 3, 16, 16)", "(1, 4, 8, 8)"]
    assert "pip install 'eecompile[prompts]'" in shapes[2]


def test_manifests_record_companions_and_their_files(folder: Path) -> None:
    bundle, engines = open_bundle(folder / "bundle"), open_engine_set(folder / "cpu")
    names = ["encoder-clip", "encoder-t5", "decoder"]
    for manifest in (bundle, engines):
        assert [each.name for each in manifest.companions] == names
        assert all(each.relative_error < 1e-5 for each in manifest.companions)
        files = {record.name for record in manifest.files}
        assert {"encoder-t5.tokenizer.json", *(c.weights for c in manifest.companions)} <= files
    assert "encoder-clip/model.safetensors" in bundle.sources
    assert "decoder/diffusion_pytorch_model.safetensors" in bundle.sources
    parameters = sum(p.numel() for p in clip(length=LENGTH).parameters())
    assert bundle.companions[0].parameters < parameters + 100  # the last layer is not needed


@pytest.mark.parametrize("name", ["encoder-clip.tokenizer.json", "decoder.safetensors"])
def test_a_damaged_companion_is_found_when_it_is_opened(
    folder: Path, copied: Callable[[Path], Path], name: str
) -> None:
    place = copied(folder / "cpu")
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    with pytest.raises(DigestError, match=re.escape(name)):
        Sampler.open(place)


def test_a_manifest_that_lacks_a_companion_is_refused(
    folder: Path, copied: Callable[[Path], Path]
) -> None:
    place = copied(folder / "cpu")
    manifest = open_engine_set(place)
    write_manifest(place, msgspec.structs.replace(manifest, companions=manifest.companions[:2]))
    with pytest.raises(DigestError, match="companions"):
        open_engine_set(place)


def test_companions_have_a_precision_of_their_own(
    folder: Path, copied: Callable[[Path], Path]
) -> None:
    place = copied(folder / "cpu")
    built = engine_set_from_bundle(folder / "bundle", DEFAULT_TARGET, place)
    assert built.up_to_date
    mixed = msgspec.structs.replace(DEFAULT_TARGET, companions=CompanionTarget(backend="openvino"))
    built = engine_set_from_bundle(folder / "bundle", mixed, place)
    assert not built.up_to_date
    assert {"onnxruntime", "openvino"} <= set(built.manifest.versions)
    assert [each.file for each in built.manifest.companions][-1] == "decoder.xml"
    with Sampler.open(place) as one, Sampler.open(folder / "cpu") as other:
        first, second = (each.sample(prompt="a cat", decode=True) for each in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-4 * np.abs(second).max())


@pytest.mark.parametrize(
    ("target", "found"),
    [
        (Target(name="rtx", backend="tensorrt-rtx"), "for tensorrt-rtx in fp32"),
        (
            Target(
                name="cuda",
                backend="onnxruntime",
                precision="fp16",
                options={"provider": "cuda"},
                companions=CompanionTarget(precision="fp16"),
            ),
            "for onnxruntime-cuda in fp16",
        ),
    ],
)
def test_a_backend_without_companions_is_named_with_a_remedy(
    folder: Path, tmp_path: Path, target: Target, found: str
) -> None:
    bundle = folder / "bundle"
    with pytest.raises(BackendError, match=found) as caught:
        build_companions(bundle, open_bundle(bundle), target, tmp_path, tmp_path, silent)
    assert "[companions]" in caught.value.remedy


BAD: dict[str, tuple[list[tuple[str, str]], type[EecompileError], str]] = {
    "a tokenizer of more tokens": (
        [('tokenizer = "clip_tokenizer"', 'tokenizer = "large.json"\npadding = "<pad>"')],
        RecipeError,
        r"a tokenizer of \d+ tokens for encoder 'clip', a CLIPTextModel that knows 55",
    ),
    "another tokenizer": (
        [('tokenizer = "t5_tokenizer/tokenizer.json"\npadding = "<pad>"', 'tokenizer = "marked"')],
        RecipeError,
        r"it marks prompts with \[2\]",
    ),
    "no tokenizer": (
        [('tokenizer = "clip_tokenizer"', 'tokenizer = "none.json"')],
        CheckpointError,
        "no tokenizer of encoder 'clip'",
    ),
    "a tokenizer without padding": (
        [('padding = "<pad>"\n', "")],
        RecipeError,
        "does not say what it pads with",
    ),
    "unknown padding": (
        [('padding = "<pad>"', 'padding = "<fill>"')],
        RecipeError,
        "encoders.t5.padding = '<fill>'",
    ),
    "a decoder of other channels": (
        [("shape = [4, 8, 8]", "shape = [8, 8, 8]")],
        TraceError,
        r"decoder that fails on latents \[1, 8, 8, 8\] .*channels",
    ),
    "a decoder of another kind": (
        [("scaling =", 'kind = "video"\nrate = 8\nscaling =')],
        TraceError,
        r"a decoder that gives \[3, 16, 16\] of \[1, 4, 8, 8\]; expected videos: 4 axes",
    ),
    "the weights of another model": (
        [("transformers:CLIPTextModel", "transformers:T5EncoderModel")],
        CheckpointError,
        "clip",
    ),
    "an unknown method": (
        [("scaling =", 'method = "uncode"\nscaling =')],
        RecipeError,
        "decoder.method = 'uncode'",
    ),
    "an unknown factory": (
        [("diffusers:AutoencoderKL", "diffusers:Autodecoder")],
        RecipeError,
        "decoder.factory = 'diffusers:Autodecoder'",
    ),
    "an unknown output": (
        [("hidden_states.-2", "hidden_states.9")],
        RecipeError,
        "output = 'hidden_states.9'",
    ),
    "an unknown condition": (
        [('gives.kept = { output = "mask" }', 'gives.mask = { output = "mask" }')],
        RecipeError,
        "encoder 'clip' of the unknown condition 'mask'",
    ),
    "a place outside": (
        [("at = [12, 0]", "at = [13, 0]")],
        RecipeError,
        r"'text' of encoder 't5' of shape \[12, 16\] at \[13, 0\]",
    ),
    "one place twice": (
        [("at = [12, 0]", "at = [4, 0]")],
        RecipeError,
        "encoder 't5' of a part of 'text' that another gives",
    ),
    "a wrong constant": (
        [("[encoders.t5]", "[encoders.clip.constants]\nuse_cache = 1979-05-27\n[encoders.t5]")],
        RecipeError,
        "encoders.clip.constants.use_cache with a date",
    ),
    "text without a tokenizer": (
        [("scaling =", 'kind = "text"\nscaling =')],
        RecipeError,
        "decoder.kind = 'text' and decoder.tokenizer = ''",
    ),
    "a picture as text": (
        [("scaling =", 'kind = "text"\ntokenizer = "clip_tokenizer"\nscaling =')],
        TraceError,
        r"expected texts: 2 axes, the scores of all tokens last",
    ),
    "tiles of more than samples": (
        [("scaling =", "tile = 16\nscaling =")],
        RecipeError,
        r"a decoder of tiles of 16 for samples of \[4, 8, 8\]",
    ),
    "tiles of axes that move": (
        [("scaling =", "tile = 4\naxes = [0, 2, 1]\nscaling =")],
        RecipeError,
        r"decoder.tile with decoder.axes = \[0, 2, 1\]",
    ),
    "no rate": ([("scaling =", 'kind = "audio"\nscaling =')], RecipeError, "without a rate"),
}


KEPT = {
    **dict.fromkeys(("another tokenizer", "a tokenizer without padding"), ("t5",)),
    **dict.fromkeys(("unknown padding", "a place outside"), ("t5",)),
    **{fault: ("decoder",) for fault in BAD if "decoder" in fault},
    **dict.fromkeys(("an unknown method", "an unknown factory", "a picture as text"), ("decoder",)),
}
"""Companions that a fault is about, where they are not the first."""


@pytest.mark.parametrize("fault", BAD)
def test_what_does_not_fit_is_told(
    changed: Callable[..., Path], tmp_path: Path, fault: str
) -> None:
    replacements, kind, found = BAD[fault]
    path = changed(*replacements)
    large = pipelines.t5_tokenizer()
    large.add_tokens([f"<{index}>" for index in range(99)])
    large.save(str(path.parent / "large.json"))
    marked = pipelines.marking(["<pad>", "</s>"], "$A <unk>")
    pipelines.wrapped(marked, LENGTH, "<pad>", "</s>").save_pretrained(path.parent / "marked")
    with pytest.raises(kind, match=found):
        exported(path, tmp_path, *KEPT.get(fault, ()))


def exported(path: Path, folder: Path, *kept: str) -> tuple[Companion, ...]:
    """The companions of a recipe, without its network; those that are named, if any are."""
    recipe = load_recipe(path)
    if kept:
        encoders = {name: each for name, each in recipe.encoders.items() if name in kept}
        decoder = recipe.decoder if "decoder" in kept else None
        recipe = msgspec.structs.replace(recipe, encoders=encoders, decoder=decoder)
    interface = interface_from_recipe(recipe)
    return export_companions(recipe, path.parent, folder, interface, silent)


def test_a_missing_shard_is_told(changed: Callable[..., Path], tmp_path: Path) -> None:
    path = changed()
    shutil.rmtree(path.parent / "t5")
    t5().save_pretrained(path.parent / "t5", max_shard_size="8KB")
    shards = sorted((path.parent / "t5").glob("*.safetensors"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(CheckpointError, match="t5, which transformers:T5EncoderModel does not"):
        exported(path, tmp_path, "t5")


def test_prompts_and_conditions_that_do_not_fit_are_told(folder: Path) -> None:
    interface = Interface(name="plain", exits=(1,), state=State(shape=(4,)))
    with Sampler(FakeEngine([1], lambda depth, x, t, conditions: x), interface) as sampler:
        with pytest.raises(UsageError, match="a prompt for plain, which has no encoder"):
            sampler.sample(prompt="a cat")
        with pytest.raises(UsageError, match="to decode; expected a network with a decoder"):
            sampler.sample(decode=True)
    with Sampler.open(folder / "cpu") as sampler:
        with pytest.raises(ConditionError, match="no prompt, and no condition 'kept'"):
            sampler.sample()
        with pytest.raises(UsageError, match=r"prompt=\.\.\. beside \['text'\]"):
            sampler.sample(prompt="a cat", text=np.zeros((24, 16)))
        with pytest.raises(UsageError, match=r"negative=\.\.\. beside \['text'\]"):
            sampler.sample(prompt="a cat", negative="", nulls={"text": np.zeros((24, 16))})
        for wrong in (3, [], ["a", 3], b"a"):
            with pytest.raises(UsageError, match="expected a text"):
                sampler.sample(1, prompt=wrong)  # type: ignore[arg-type]


SMALL = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
DECODERS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "AutoencoderTiny": (
        {**SMALL, "latent_channels": 4, "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
        (4, 8, 8),
        (3, 16, 16),
    ),
    "AutoencoderDC": (
        {
            **SMALL,
            "latent_channels": 4,
            "attention_head_dim": 2,
            "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
            "encoder_qkv_multiscales": ((), (5,)),
            "decoder_qkv_multiscales": ((), (5,)),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "downsample_block_type": "conv",
            "upsample_block_type": "interpolate",
        },
        (4, 8, 8),
        (3, 16, 16),
    ),
    "AutoencoderOobleck": (
        {
            "encoder_hidden_size": 12,
            "decoder_channels": 12,
            "decoder_input_channels": 6,
            "downsampling_ratios": [2, 4],
            "channel_multiples": [1, 2],
        },
        (6, 16),
        (2, 128),
    ),
    "AutoencoderKLQwenImage": (
        {
            "base_dim": 12,
            "z_dim": 4,
            "dim_mult": [1, 2],
            "num_res_blocks": 1,
            "temperal_downsample": [False],
        },
        (4, 1, 4, 4),
        (3, 1, 8, 8),
    ),
    "AutoencoderKLLTXVideo": (
        {
            "latent_channels": 8,
            "block_out_channels": (8, 8, 8, 8),
            "decoder_block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1, 1, 1),
            "spatio_temporal_scaling": (True, True, False, False),
            "decoder_spatio_temporal_scaling": (True, True, False, False),
            "patch_size": 1,
        },
        (8, 3, 4, 4),
        (3, 9, 16, 16),
    ),
}
"""Options, the shape of what is decoded, and of what becomes of it."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", DECODERS)
def test_diffusers_decoders_are_exported(tmp_path: Path, name: str) -> None:
    options, shape, decoded = DECODERS[name]
    module = random_weights(getattr(diffusers, name)(**options), scale=0.7)
    module.save_pretrained(tmp_path / "decoder")
    kinds: dict[int, Any] = {2: "audio", 3: "image", 4: "video"}
    decoder = DecoderRecipe(
        factory=f"diffusers:{name}", checkpoint="decoder", kind=kinds[len(shape)], rate=8, scaling=2
    )
    network = NetworkRecipe(exits=(1,), files=("none.onnx",))
    recipe = ExportRecipe(name="x", network=network, state=State(shape=shape), decoder=decoder)
    interface = interface_from_recipe(recipe)
    (made,) = export_companions(recipe, tmp_path, tmp_path, interface, silent)
    assert made.relative_error < 1e-4
    latents = np.random.default_rng(1).standard_normal((3, *shape), np.float32)
    (found,) = run_session(
        session_from_graph(tmp_path / made.file), {"latents": latents}, made.outputs
    )
    with torch.no_grad():
        right = module.decode(torch.from_numpy(latents) / 2).sample.numpy()
    assert found.shape == (3, *decoded)
    np.testing.assert_allclose(found, right, atol=1e-4 * np.abs(right).max())
