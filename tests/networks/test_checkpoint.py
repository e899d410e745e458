"""The checkpoint formats that are read, and what is refused without being run."""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import types
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from eecompile.errors import CheckpointError
from eecompile.networks.checkpoint import state_from_file
from eecompile.store.bundle import sha256
from tests.networks.test_dit import tiny

State = dict[str, Tensor]


def zipped(content: Any, path: Path) -> None:
    torch.save(content, path)


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


FORMATS = [zipped, legacy]
Save = Callable[[Any, Path], None]


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        "blocks.0.weight": torch.randn(4, 3, generator=generator),
        "blocks.0.bias": torch.randn(4, generator=generator),
        "count": torch.tensor(seed),
    }


def optimised() -> dict[str, Any]:
    """An optimiser's state after a step, as training scripts store it."""
    layer = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


def training(**changes: Any) -> dict[str, Any]:
    """What the training scripts of DiT and ASE save."""
    arguments = argparse.Namespace(model="DiT-XL/2", lr=1e-4, sizes=[1, 2], resume=None)
    content = {"model": state(1), "ema": state(2), "opt": optimised(), "args": arguments}
    return content | changes


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("save", FORMATS)
def test_a_state_dict_alone_is_read(tmp_path: Path, save: Save) -> None:
    save(state(), tmp_path / "a.pt")
    assert_same(state_from_file(tmp_path / "a.pt"), state())


@pytest.mark.parametrize("save", FORMATS)
def test_a_modules_own_state_dict_is_read(tmp_path: Path, save: Save) -> None:
    layer = nn.BatchNorm2d(3)
    save(layer.state_dict(), tmp_path / "a.pt")  # an OrderedDict with an attribute
    assert_same(state_from_file(tmp_path / "a.pt"), dict(layer.state_dict()))


def test_safetensors_is_read(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_same(state_from_file(tmp_path / "a.safetensors"), state())


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin", "0100000"])
def test_the_averaged_weights_of_a_training_script_are_taken(
    tmp_path: Path, save: Save, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    save(training(), path)
    assert_same(state_from_file(path), state(2))


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize(("key", "seed"), [("model", 1), ("ema", 2), (None, 2)])
def test_the_key_chooses_the_entry(tmp_path: Path, save: Save, key: str | None, seed: int) -> None:
    save(training(), tmp_path / "a.pt")
    assert_same(state_from_file(tmp_path / "a.pt", key), state(seed))


@pytest.mark.parametrize(
    ("content", "seed"),
    [
        ({"model": state(1), "step": 3}, 1),
        ({"state_dict": state(1), "epoch": 3, "name": "words"}, 1),
        ({"model": state(1), "model_ema": state(2)}, 2),
        ({"model_ema": state(1), "ema": state(2)}, 2),
        ({"state_dict": state(1), "model": state(2)}, 2),
        ({"model": OrderedDict(state(1))}, 1),
    ],
    ids=["model", "state_dict", "model_ema", "ema", "both", "ordered"],
)
def test_the_usual_entries_are_found_averages_first(
    tmp_path: Path, content: dict[str, Any], seed: int
) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert_same(state_from_file(tmp_path / "a.pt"), state(seed))


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_keep_the_type_that_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    given = {"weight": torch.tensor([0, 1, 1]).to(dtype)}
    torch.save(given, tmp_path / "a.pt")
    legacy(given, tmp_path / "b.pt")
    save_file(given, tmp_path / "a.safetensors")
    for name in ("a.pt", "b.pt", "a.safetensors"):
        assert_same(state_from_file(tmp_path / name), given)


def test_tensors_may_share_storage_and_be_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    given = {"whole": whole, "same": whole, "turned": whole.T, "row": whole[1]}
    for save in FORMATS:
        save(given, tmp_path / "a.pt")
        found = state_from_file(tmp_path / "a.pt")
        assert_same(found, given)
        assert found["whole"].data_ptr() == found["same"].data_ptr()


def test_what_is_read_is_not_written_back(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(), path)
    before = path.read_bytes()
    for value in state_from_file(path).values():
        value.zero_()
    assert path.read_bytes() == before
    assert_same(state_from_file(path), state())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("place", ["beside", "alone", "inside"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, save: Save, place: str
) -> None:
    made, path = tmp_path / "made", tmp_path / "a.pt"
    contents: dict[str, Any] = {
        "beside": training(args=Trap(made)),
        "alone": Trap(made),
        "inside": {**state(), "trap": Trap(made)},
    }
    save(contents[place], path)
    with pytest.raises(CheckpointError) as caught:
        state_from_file(path)
    assert not made.exists()
    assert caught.value.found == f"{path}, a pickle that needs code to be read ({os.name}.mkdir)"
    assert "can run anything" in caught.value.expected
    assert "where you trust the file" in caught.value.remedy
    assert "safetensors.torch.save_file" in caught.value.remedy
    torch.load(path, weights_only=False)  # the trap is a real one
    assert made.exists()


class Arguments:
    """A class of the training script's own."""


@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize(
    ("value", "culprit"),
    [
        (Arguments(), Arguments),
        (types.SimpleNamespace(lr=1), types.SimpleNamespace),
        (argparse.Namespace(folder=PurePosixPath("a")), PurePosixPath),
        (defaultdict(list), defaultdict),
    ],
)
def test_a_class_that_is_needed_to_read_a_file_is_named(
    tmp_path: Path, save: Save, value: Any, culprit: type
) -> None:
    save(training(args=value), tmp_path / "a.pt")
    name = f"{culprit.__module__}.{culprit.__qualname__}"
    with pytest.raises(CheckpointError) as caught:
        state_from_file(tmp_path / "a.pt")
    assert caught.value.found.endswith(f"needs code to be read ({name})")


@pytest.mark.parametrize("save", FORMATS)
def test_a_whole_network_instead_of_its_weights_is_refused(tmp_path: Path, save: Save) -> None:
    save(tiny(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"needs code to be read \(eecompile\.networks\.dit"):
        state_from_file(tmp_path / "a.pt")


def test_the_classes_that_are_allowed_stay_forbidden_elsewhere(tmp_path: Path) -> None:
    torch.save(training(), tmp_path / "a.pt")
    state_from_file(tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "a.pt", weights_only=True)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["zipped", "legacy", "safetensors"])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    given = {"weight": torch.randn(200)}
    if kind == "safetensors":
        save_file(given, path)
    else:
        {"zipped": zipped, "legacy": legacy}[kind](given, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError) as caught:
        state_from_file(path)
    named = "safetensors" if kind == "safetensors" else "checkpoint"
    assert caught.value.found.startswith(f"{path}, which is no whole {named} file (")
    assert "\n" not in str(caught.value)
    assert "check its size" in caught.value.remedy


@pytest.mark.posix
@pytest.mark.parametrize("record", ["data.pkl", "byteorder", "version", "data/0"])
def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is_unpacked(
    tmp_path: Path, record: str
) -> None:
    zipped({"weight": torch.randn(200)}, tmp_path / "a.pt")
    path, more = tmp_path / "bomb.pt", 1 << 27
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as whole,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        for name in whole.namelist():
            data = whole.read(name)
            bomb.writestr(name, data + bytes(more) if name.endswith(record) else data)
    assert path.stat().st_size < more // 100
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"unpacks to [\d,]{11} bytes; .*unpack it first"):
        state_from_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < more // 4 >> 10


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"not a checkpoint",
        b"<!DOCTYPE html><html></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        bytes(1000),
    ],
    ids=["words", "page", "pointer", "zeros"],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        state_from_file(path)
    assert caught.value.found.startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_under_the_suffix_of_safetensors_is_refused(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        state_from_file(tmp_path / "a.safetensors")


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors", "none/a.pt", ".", "a" * 300])
def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        state_from_file(tmp_path / name)
    assert caught.value.found == f"no checkpoint at {tmp_path / name}"
    assert "--checkpoint" in caught.value.remedy


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "holds no state_dict but a list"),
        (torch.ones(2), "holds no state_dict but a Tensor"),
        ({}, "holds no state_dict but a dict"),
        ({"step": 3, "lr": 0.1}, "holds no state_dict but entries ['step', 'lr']"),
        ({1: torch.ones(2)}, "holds no state_dict but entries ['1']"),
        ({"weights": state()}, "holds no state_dict but entries ['weights']"),
        ({"model": {"net": state()}}, "holds no state_dict but entries ['model']"),
        ({"model": [torch.ones(2)]}, "holds no state_dict but entries ['model']"),
        ({**state(), "step": 3}, "entries ['blocks.0.weight', 'blocks.0.bias', 'count', 'step']"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_with_what_it_holds(
    tmp_path: Path, content: Any, found: str
) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        state_from_file(tmp_path / "a.pt")
    assert found in caught.value.found
    assert "'ema'" in caught.value.expected
    assert "'state_dict'" in caught.value.expected
    assert "network.checkpoint_key" in caught.value.remedy


def test_an_entry_of_any_name_is_found_by_its_key(tmp_path: Path) -> None:
    torch.save({"weights": state(1), "model": state(2)}, tmp_path / "a.pt")
    assert_same(state_from_file(tmp_path / "a.pt", "weights"), state(1))


@pytest.mark.parametrize("key", ["weights", "opt", "args"])
def test_a_key_that_names_no_state_dict_is_refused(tmp_path: Path, key: str) -> None:
    torch.save(training(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        state_from_file(tmp_path / "a.pt", key)
    assert caught.value.expected == f"one, alone or under {key!r}"


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_key_for_a_file_that_is_a_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(state(), tmp_path / name)
    with pytest.raises(CheckpointError) as caught:
        state_from_file(tmp_path / name, "ema")
    assert caught.value.found == f"{tmp_path / name}, which holds a state_dict itself"
    assert caught.value.remedy == "remove network.checkpoint_key"


def test_the_digest_is_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(), path)
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_average_gives_way_to_the_weights(tmp_path: Path) -> None:
    torch.save({"ema": None, "model": state()}, tmp_path / "a.pt")
    assert_same(state_from_file(tmp_path / "a.pt"), state())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<!doctype html>", "no whole checkpoint file"),
        ("version https://git-lfs.github.com/spec/v1", "only points to the file .*git lfs pull"),
    ],
)
def test_a_file_that_is_no_pickle_needs_no_code(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.pt").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        state_from_file(tmp_path / "a.pt")


def test_a_saved_module_names_its_class(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"needs code to be read \(torch\.nn\S+Linear\)"):
        state_from_file(tmp_path / "a.pt")


def test_a_torchscript_archive_says_so(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still around
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a TorchScript archive"):
        state_from_file(tmp_path / "a.pt")
