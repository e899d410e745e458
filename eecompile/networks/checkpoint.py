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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eecompile.errors import CheckpointError

_NEEDS_CODE = re.compile(r"GLOBAL (\S+)|Unsupported (?:global|class)|Can only")
_DENSE = torch.strided
_ARCHIVE = b"PK\3\4"  # how an archive begins, for torch too
# Averaged weights first: they are what published samples are made with.
_KEYS = ("ema", "model_ema", "model", "state_dict")


def state_from_file(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The state_dict in a checkpoint, its tensors mapped from the file where it can be.

    Args:
        path: safetensors, or a file of torch.save: a state_dict, or a dictionary that
            holds one beside other things, as training scripts write.
        key: entry that holds the state_dict; None looks for the usual ones.

    Raises:
        CheckpointError: the file is missing or unreadable, would run code when read,
            or holds no state_dict.
    """
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
    if not path.is_file():
        raise CheckpointError(
            found=f"no checkpoint at {path}",
            expected="the file that network.checkpoint names, relative to the recipe",
            remedy="fix the path, pass --checkpoint, or train the network first",
        )


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


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    if "torch.jit" in str(error) or "TorchScript" in str(error):
        return CheckpointError(
            found=f"{path}, a TorchScript archive",
            expected="safetensors, or torch.save of tensors only",
            remedy="load it with torch.jit.load, and save its state_dict",
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
