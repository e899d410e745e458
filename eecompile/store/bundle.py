"""Bundles and engine sets: their files and digests, read and written.

A bundle (``eecompile export``) and an engine set (``eecompile build``) are folders of
data: a manifest, graphs, and one weights file. Nothing in them is executed as Python.
The names in a manifest are plain names inside the folder, and every file's digest is
checked before anything is loaded. Folders are written by :mod:`eecompile.store.folders`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TypeVar

import msgspec

from eecompile.decoding import MalformedError, from_json
from eecompile.errors import BundleError, DigestError, FormatError, RecipeError, UsageError
from eecompile.store.companions import tokenizer_files
from eecompile.store.files import file_bytes, outline
from eecompile.store.manifest import (
    FORMAT,
    BundleManifest,
    EngineManifest,
    FileRecord,
    exit_graph_name,
)
from eecompile.store.meaning import bundle_problems, engine_problems
from eecompile.store.signature import SIGNATURE, check_signature

MANIFEST = "manifest.json"
_LONG = 100  # characters for the exits in a file name
WEIGHTS = "weights.safetensors"
CALIBRATION = "calibration.npz"  # of a bundle: inputs made of the recipe's data, if it names any

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]*[\x00-\x7f])")


Manifest = TypeVar("Manifest", BundleManifest, EngineManifest)


class _Name(msgspec.Struct):
    name: str


class _Outline(msgspec.Struct):
    """What manifests of every format have."""

    kind: str
    format: int
    interface: _Name | None = None
    target: _Name | None = None
    files: tuple[_Name, ...] = ()


def segment_name(index: int, exits: Sequence[int], suffix: str) -> str:
    """File name of a segment's engine in an engine set."""
    named = "-".join(map(str, exits))
    if len(named) > _LONG:  # file systems take 255 bytes
        named = f"{exits[0]}-to-{exits[-1]}"
    return f"segment-{index:02d}-exits-{named}.{suffix}"


def file_names(folder: Path) -> tuple[str, ...]:
    """Names of the files of a bundle or an engine set of any format, even if it is damaged.

    Empty where there is none: other programs have files called ``manifest.json`` too.
    """
    found = _outline(folder)
    ours = found.kind in ("bundle", "engine-set")
    return (MANIFEST, SIGNATURE, *(record.name for record in found.files)) if ours else ()


def records(folder: Path) -> tuple[FileRecord, ...]:
    """A record of every file in ``folder`` but the manifest and its signature, by name."""
    apart = (MANIFEST, SIGNATURE)
    paths = sorted(path for path in folder.iterdir() if path.name not in apart)
    return tuple(
        FileRecord(name=path.name, bytes=path.stat().st_size, sha256=sha256(path)) for path in paths
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest`` with its digest, which is also returned."""
    signed = msgspec.structs.replace(manifest, digest=_digest(manifest))
    text = msgspec.json.format(msgspec.json.encode(signed), indent=2)
    (folder / MANIFEST).write_bytes(text + b"\n")
    return signed


def open_bundle(folder: Path, signed_by: Path | None = None) -> BundleManifest:
    """The manifest of a bundle, once every file in it has its digest.

    Args:
        folder: of the bundle.
        signed_by: file of the public key that must have signed it, which is verified before
            anything else is read; see :mod:`eecompile.store.signature`.

    Raises:
        SignatureError: it is not signed by that key.
        BundleError: there is no bundle at ``folder``.
        FormatError: it was written by a newer or an older eecompile.
        DigestError: a file is missing, truncated or altered.
    """
    manifest = _open(folder, BundleManifest, "bundle", "eecompile export", signed_by)
    _check_meaning(folder, bundle_problems(manifest))
    graphs = [exit_graph_name(depth) for depth in manifest.interface.exits]
    graphs += [graph.graph for graph in manifest.exits]
    check_listed(folder, manifest, graphs + _companion_files(manifest))
    return manifest


def open_engine_set(folder: Path, signed_by: Path | None = None) -> EngineManifest:
    """The manifest of an engine set; arguments and errors are those of :func:`open_bundle`."""
    manifest = _open(folder, EngineManifest, "engine-set", "eecompile build", signed_by)
    _check_meaning(folder, engine_problems(manifest))
    engines = [segment.file for segment in manifest.segments]
    check_listed(folder, manifest, engines + _companion_files(manifest))
    return manifest


def _companion_files(manifest: BundleManifest | EngineManifest) -> list[str]:
    """The files of companions."""
    parts = [name for each in manifest.companions for name in (each.file, each.weights)]
    return parts + tokenizer_files(manifest.interface)


def listed(manifest: BundleManifest | EngineManifest, name: str) -> bool:
    """Whether a manifest has a record of a file: others are not checked, and must not be read."""
    return any(record.name == name for record in manifest.files)


def peek(folder: Path, signed_by: Path | None = None) -> str:
    """What ``folder`` holds, by its manifest: ``bundle`` or ``engine-set``.

    Raises:
        SignatureError: it is not signed by that key, if one is given.
        BundleError: there is no manifest, or it names something else.
        FormatError: it was written by a newer or an older eecompile.
    """
    data = _read(folder, "a bundle or an engine set", "eecompile export", signed_by)
    header = _header(folder, data)
    if header.kind not in ("bundle", "engine-set"):
        raise BundleError(
            found=f"kind {header.kind!r} in {folder / MANIFEST}",
            expected="'bundle' or 'engine-set'",
            remedy="give the folder that eecompile export or eecompile build wrote",
        )
    return header.kind


def older_identity(folder: Path) -> tuple[str, ...]:
    """Whose folder of an older format this is: the network, and the target of an engine set.

    Empty where there is no folder of an older format.
    """
    found = _outline(folder)
    if found.format >= FORMAT or found.interface is None:
        return ()
    return (found.interface.name, *([found.target.name] if found.target else []))


def _outline(folder: Path) -> _Outline:
    """The outline of a manifest; that of an empty one where there is none."""
    return outline(folder / MANIFEST, _Outline) or _Outline(kind="", format=FORMAT)


def _open(
    folder: Path, kind: type[Manifest], name: str, command: str, signed_by: Path | None
) -> Manifest:
    data = _read(folder, f"a folder that {command!r} wrote", command, signed_by)
    header = _header(folder, data)
    if header.kind != name:
        raise BundleError(
            found=f"{_article(header.kind)} at {folder}",
            expected=_article(name),
            remedy=f"give the folder that {command!r} wrote",
        )
    try:
        manifest = from_json(data, kind)
    except MalformedError as error:
        problem = f"a manifest that does not fit its format ({error})"
        raise _damaged(folder / MANIFEST, problem) from error
    except (RecipeError, UsageError) as error:  # of values that cannot be together
        raise _damaged(folder / MANIFEST, error.found, error.expected) from error
    if manifest.digest != _digest(manifest):
        raise _damaged(folder / MANIFEST, "a manifest with another digest than it states")
    for record in manifest.files:
        _check(folder, record)
    return manifest


def _check_meaning(folder: Path, problems: Iterable[str]) -> None:
    for problem in problems:
        raise _damaged(folder / MANIFEST, problem, "what eecompile writes")


def _article(kind: str) -> str:
    return {"bundle": "a bundle", "engine-set": "an engine-set"}.get(kind, f"kind {kind!r}")


def _read(folder: Path, expected: str, command: str, signed_by: Path | None) -> bytes:
    """The manifest's bytes, once their signature has been verified, if a key is given."""
    try:
        data = file_bytes(folder / MANIFEST)
    except OSError as error:
        raise BundleError(
            found=f"no {MANIFEST} in {folder}",
            expected=expected,
            remedy=f"check the path, or run {command!r} first",
        ) from error
    if signed_by is not None:
        check_signature(folder, data, signed_by)
    return data


def _header(folder: Path, data: bytes) -> _Outline:
    try:
        header = from_json(data, _Outline)
    except MalformedError as error:
        raise _damaged(folder / MANIFEST, f"a truncated or altered manifest ({error})") from error
    if header.format != FORMAT:
        newer = "upgrade eecompile, or write the folder again with this version"
        older = "write the folder again with this version: export, then build"
        raise FormatError(
            found=f"format {header.format} in {folder}",
            expected=f"format {FORMAT}",
            remedy=newer if header.format > FORMAT else older,
        )
    return header


def _check(folder: Path, record: FileRecord) -> None:
    path = folder / record.name
    if path.is_symlink() or not path.is_file():
        raise _damaged(path, "no such file")
    size = path.stat().st_size
    if size != record.bytes:
        raise _damaged(path, f"{size} bytes", f"{record.bytes} bytes")
    digest = sha256(path)
    if digest != record.sha256:
        raise _damaged(path, f"SHA-256 {digest[:12]}...", f"{record.sha256[:12]}...")


def check_listed(
    folder: Path, manifest: BundleManifest | EngineManifest, names: Iterable[str]
) -> None:
    """Pass when files that are read, and those that ONNX graphs read, are among the checked.

    Raises:
        DigestError: one is not.
    """
    for name in names:
        weights = _external_data(folder / name) if name.endswith(".onnx") else set()
        for read in (name, *sorted(weights)):
            if not listed(manifest, read):
                found = f"{read!r}, which is read, but not listed in {MANIFEST},"
                raise _damaged(folder, found, "a record of every file that is read")


def _external_data(graph: Path) -> set[str]:
    """Names of the files in which an ONNX graph has its weights.

    Found without a parser: protobuf writes them behind their key and their length.
    """
    if not (graph.is_file() and graph.stat().st_size):
        return set()
    names = set()
    with graph.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        for end, digits in [(found.end(), found[1]) for found in _LOCATION.finditer(data)]:
            length = sum((digit & 127) << 7 * index for index, digit in enumerate(digits))
            names.add(data[end : end + length].decode(errors="replace"))
    return names


def _damaged(path: Path, found: str, expected: str = "the file as it was written") -> DigestError:
    return DigestError(
        found=f"{found} at {path}",
        expected=expected,
        remedy="copy the folder again, or write it anew with eecompile",
    )


def _digest(manifest: BundleManifest | EngineManifest) -> str:
    # Through JSON once, so that an integer where a float belongs has its one spelling.
    text = msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))
    blank = from_json(text, type(manifest))
    return hashlib.sha256(msgspec.json.encode(blank, order="deterministic")).hexdigest()
