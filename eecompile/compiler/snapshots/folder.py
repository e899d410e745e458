"""What lies in a snapshot folder: the network, its weights, its scheduler, and companions."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any, NamedTuple

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import UsageError, summary
from eecompile.networks.checkpoint import checkpoint_files

HUB = "hub:"
"""What a name begins with that is looked up in the Hugging Face cache."""
_NETWORKS = ("transformer", "unet")
_WEIGHTS = "diffusion_pytorch_model"
_KINDS = (".safetensors", ".bin")


class Snapshot(NamedTuple):
    """The parts of a pipeline's folder.

    Attributes:
        folder: where they are.
        network: folder of the network.
        config: the network's ``config.json``: its class, and the arguments that made it.
        checkpoint: the file of its weights, or the index of their shards.
        scheduler: folder of the scheduler; None where there is none.
        companions: other networks and tokenizers, their classes by folder.
        variant: of the weights; None for the plain ones.
    """

    folder: Path
    network: Path
    config: dict[str, Any]
    checkpoint: Path
    scheduler: Path | None
    companions: dict[str, str]
    variant: str | None = None


def folder_of(text: str) -> Path:
    """The folder that a path names, or ``hub:ORG/NAME`` or ``hub:ORG/NAME@REVISION``.

    Nothing is downloaded: the snapshot is the one in the local Hugging Face cache.

    Raises:
        UsageError: it is not in the cache.
    """
    if not text.startswith(HUB):
        return Path(text)
    name, _, revision = text.removeprefix(HUB).partition("@")
    hub = importlib.import_module("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, revision=revision or None, local_files_only=True))
    except Exception as error:  # its errors share no base class
        raise UsageError(
            found=f"no snapshot of {name} in the local Hugging Face cache ({summary(error)})",
            expected=f"{HUB}ORG/NAME of a model that was downloaded, or its folder",
            remedy=f"download it with: hf download {name}",
        ) from error


def read_snapshot(folder: Path, variant: str | None = None) -> Snapshot:
    """The parts of a pipeline's folder, or of a network's own.

    Args:
        folder: written by ``save_pretrained``, or the snapshot of a repository.
        variant: of the weights, such as ``fp16``; None takes the plain ones, or the only ones.

    Raises:
        UsageError: there is no network, or no such variant.
        CheckpointError: shards are missing.
    """
    parts = [folder / name for name in _NETWORKS if (folder / name / "config.json").is_file()]
    if not parts and not (folder / "config.json").is_file():
        raise UsageError(
            found=f"no transformer/config.json and no unet/config.json in {folder}",
            expected="the folder of a diffusers pipeline, as save_pretrained writes it",
            remedy="give the folder that holds model_index.json, or the network's own folder",
        )
    network = parts[0] if parts else folder
    checkpoint = _checkpoint(network, variant)
    checkpoint_files(checkpoint)  # all shards are there
    root = folder if parts else folder.parent
    scheduler = root / "scheduler"
    return Snapshot(
        root,
        network,
        read_config(network / "config.json"),
        checkpoint,
        scheduler if (scheduler / "scheduler_config.json").is_file() else None,
        _companions(root, network.name),
        variant,
    )


def class_defaults(kind: str) -> dict[str, Any]:
    """The arguments of a class of diffusers that need not be given."""
    made = getattr(importlib.import_module("diffusers"), kind)
    parameters = inspect.signature(made.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def read_config(path: Path) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
        UsageError: there is none.
    """
    try:
        found: dict[str, Any] = from_json(path.read_bytes(), dict[str, Any])
    except (OSError, MalformedError) as error:
        raise UsageError(
            found=f"{path}, which is no readable JSON with an object in it ({error})",
            expected="a config.json as save_pretrained writes it",
            remedy="copy the folder again",
        ) from error
    return found


def _checkpoint(folder: Path, variant: str | None) -> Path:
    """The plain weights, or a variant's; an index before a single file of that name."""
    found: dict[str, Path] = {}
    for kind in _KINDS:
        for index in (f"{kind}.index", kind):
            for path in sorted(folder.glob(f"{_WEIGHTS}*")):
                name = path.name.removeprefix(_WEIGHTS).removesuffix(".json")
                of = _variant(name, kind, index.endswith(".index"))
                if of is not None:
                    found.setdefault(of, path)
    wanted = "" if variant is None else variant
    if variant is None and len(found) == 1:
        return next(iter(found.values()))
    if wanted in found:
        return found[wanted]
    names = ", ".join(name or "the plain one" for name in sorted(found))
    raise UsageError(
        found=(f"no variant {wanted!r}" if wanted else "no plain weights")
        + f" in {folder}, but {names or 'no weights at all'}",
        expected=f"{_WEIGHTS}.safetensors, or its shards and their index",
        remedy="choose one with --variant" if found else "download the weights, too",
    )


def _variant(name: str, kind: str, sharded: bool) -> str | None:
    """The variant of a file's name without ``_WEIGHTS``; None where it is of another kind."""
    words = name.split(".")[1:]
    ends = [*kind.split(".")[1:], *(["index"] if sharded else [])]
    rest = [word for word in words if word not in ends]
    shard = "-of-" in name
    return ".".join(rest) if not shard and len(words) - len(rest) == len(ends) else None


def _companions(folder: Path, network: str) -> dict[str, str]:
    """The classes of a pipeline's other parts, by folder, from its model_index.json."""
    path = folder / "model_index.json"
    if not path.is_file():
        return {}
    return {
        name: entry[1]
        for name, entry in read_config(path).items()
        if isinstance(entry, list)
        and len(entry) == 2
        and all(isinstance(e, str) for e in entry)
        and name not in (network, "scheduler")
        and (folder / name).is_dir()
    }
