"""Read a checkpoint file: safetensors, or what torch.save wrote, never other pickles."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eecompile.decoding import MalformedError, PlainName, from_json
from eecompile.errors import CheckpointError
from eecompile.store.files import is_file
from eecompile.store.shipped import missing_package

_NEEDS_CODE = re.compile(r"GLOBAL (\S+)|Unsupported (?:global|class)|Can only")
_DENSE = torch.strided
_ARCHIVE = b"PK\3\4"  # how an archive begins, for torch too
# Averaged weights first: they are what published samples are made with.
_AVERAGED = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
_KEYS = (*_AVERAGED, "model", "state_dict", "model_state_dict", "module")
_INDEX = re.compile(r"\.index(\.[A-Za-z0-9_-]+)?\.json\Z")  # with a variant's name, perhaps


class _Index(msgspec.Struct):
    weight_map: dict[str, PlainName]


def state_from_file(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state_dict in a checkpoint, its tensors mapped from the file where it can be.

    Args:
        path: safetensors, or a file of torch.save: a state_dict, or a dictionary that
            holds one beside other things, as training scripts write. Or the
            ``.index.json`` of a checkpoint in shards.
        key: entry that holds the state_dict; None looks for the usual ones.

    Raises:
        CheckpointError: the file or a shard is missing or unreadable, would run code when
            read, or holds no state_dict.
    """
    if _INDEX.search(path.name):
        return _from_shards(path, key)
    check_file(path)
    try:
        _check_stored(path)
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except CheckpointError:
        raise
    except Exception as error:  # torch and safetensors raise many kinds
        if isinstance(error, pickle.UnpicklingError) and _NEEDS_CODE.search(str(error)):
            raise _refused(path, error) from error
        raise _unreadable(path, error) from error
    return dict(_state(content, key, path))


def check_file(path: Path) -> None:
    """Pass when there is a file."""
    if not is_file(path):
        raise missing_package(path.name) or CheckpointError(
            found=f"no checkpoint at {path}",
            expected="the file that network.checkpoint names, relative to the recipe",
            remedy="fix the path, pass --checkpoint, or train the network first",
        )


def checkpoint_files(path: Path) -> list[Path]:
    """The files that a checkpoint consists of: itself, or the shards that its index names.

    Raises:
        CheckpointError: the index is missing or none, or shards are missing.
    """
    if not _INDEX.search(path.name):
        return [path]
    return [path, *(path.parent / name for name in sorted({*_shards(path).values()}))]


def _shards(path: Path) -> dict[str, str]:
    """The shard of each weight, by the index at ``path``; all of them are there."""
    check_file(path)
    try:
        names = from_json(path.read_bytes(), _Index).weight_map
    except MalformedError as error:
        raise CheckpointError(
            found=f"{path}, which is no index of shards ({error})",
            expected="JSON with a weight_map, as save_pretrained writes it",
            remedy="copy it again, or name the checkpoint's own file",
        ) from error
    shards = sorted({*names.values()})
    missing = [name for name in shards if not is_file(path.parent / name)]
    if missing or not shards:
        raise CheckpointError(
            found=f"{len(missing)} of {len(shards)} shards missing beside {path} "
            f"({', '.join(missing[:3])})",
            expected="every file that the index names",
            remedy="download or copy the missing files into that folder",
        )
    return names


def _from_shards(path: Path, key: str | None) -> dict[str, Tensor]:
    names, whole = _shards(path), {}
    for shard in sorted({*names.values()}):
        whole.update(state_from_file(path.parent / shard, key))
    missing, unknown = names.keys() - whole.keys(), whole.keys() - names.keys()
    if missing or unknown:
        few = ", ".join([*missing, *unknown][:3])
        raise CheckpointError(
            found=f"shards of another checkpoint than {path}: {len(missing)} weights that it "
            f"names are missing, {len(unknown)} are unknown ({few})",
            expected="the index and the shards of one checkpoint",
            remedy="copy the whole folder again",
        )
    return whole


def _check_stored(path: Path) -> None:
    """Pass unless a file would unpack to more than its own size.

    safetensors and torch.save compress nothing: tensors are mapped, as they lie in the file.
    """
    with path.open("rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(record.file_size for record in archive.infolist())
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            found=f"{path}, a compressed archive that unpacks to {unpacked:,} bytes",
            expected="safetensors, or torch.save of tensors only, which do not compress",
            remedy="unpack it first, or copy the file again as it was saved",
        )


def _load(path: Path) -> Any:
    # Training scripts store their arguments beside the weights; a namespace runs no code.
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old protocols and archives
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)  # the old format


def _state(content: Any, key: str | None, path: Path) -> Mapping[str, Tensor]:
    if isinstance(content, Mapping) and content and not _is_state(content):
        found = [
            content[name]
            for name in ((key,) if key else _KEYS)
            if isinstance(content.get(name), Mapping) and _is_state(content[name])
        ]
        content = found[0] if found else content
    elif key is not None and isinstance(content, Mapping) and key not in content:
        raise CheckpointError(
            found=f"{path}, which holds a state_dict itself",
            expected=f"an entry {key!r} that holds it",
            remedy="remove network.checkpoint_key",
        )
    if not isinstance(content, Mapping) or not content or not _is_state(content):
        if isinstance(content, Mapping) and isinstance(content.get("shadow_params"), list):
            raise CheckpointError(
                found=f"{path}, an average that is a list without names (shadow_params)",
                expected="a state_dict",
                remedy="load it in Python, copy it into the network with ema.copy_to, and save "
                "network.state_dict()",
            )
        keys = islice(content, 6) if isinstance(content, Mapping) else ()
        names = [str(key) if isinstance(key, str | int) else type(key).__name__ for key in keys]
        raise CheckpointError(
            found=f"{path}, which holds no state_dict"
            + (f" but entries {names}" if names else f" but a {type(content).__name__}"),
            expected=f"one, alone or under {key!r}" if key else f"one, alone or under {_KEYS}",
            remedy="name its entry in network.checkpoint_key, or save network.state_dict()",
        )
    odd = [name for name, value in content.items() if value.is_meta or value.layout != _DENSE]
    if odd:
        raise CheckpointError(
            found=f"{len(odd)} tensors in {path} without plain data ({', '.join(odd[:3])})",
            expected="dense tensors with their values",
            remedy="save them on the CPU, with .to_dense() where they are sparse",
        )
    return content


def _is_state(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _refused(path: Path, error: Exception) -> CheckpointError:
    match = re.search(r"GLOBAL (\S+)", str(error))
    return CheckpointError(
        found=f"{path}, a pickle that needs code to be read" + (f" ({match[1]})" if match else ""),
        expected="tensors only: reading other pickles can run anything",
        remedy="where you trust the file, load it in Python and save its state_dict with "
        "safetensors.torch.save_file",
    )


def _begins_with(path: Path, words: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(words)) == words
    except OSError:
        return False


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if "torch.jit" in str(error) or "TorchScript" in str(error):
        return CheckpointError(
            found=f"{path}, a TorchScript archive",
            expected="safetensors, or torch.save of tensors only",
            remedy="load it with torch.jit.load, and save its state_dict",
        )
    if _begins_with(path, b"version https://git-lfs."):
        return CheckpointError(
            found=f"{path}, which only points to the file (Git LFS)",
            expected="safetensors, or torch.save of tensors only",
            remedy="fetch it with git lfs pull",
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if "weights_only" in lines[0]:  # torch's advice to run what is in the file
        lines = ["no archive of tensors that torch.save wrote"]
    kind = "safetensors" if isinstance(error, SafetensorError) else "checkpoint"
    return CheckpointError(
        found=f"{path}, which is no whole {kind} file ({lines[0]})",
        expected="safetensors, or torch.save of tensors only",
        remedy="copy it again, and check its size",
    )
