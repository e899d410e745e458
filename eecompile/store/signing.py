"""Signing bundles and engine sets that are there already."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from eecompile.store.bundle import MANIFEST, open_bundle, open_engine_set, peek
from eecompile.store.folders import new_folder
from eecompile.store.signature import SIGNATURE, private_key, read_signature

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_folder(folder: Path, key: Path) -> bool:
    """Sign a bundle or an engine set, once all of its files are found right.

    It is replaced as a whole by the same files and the signature, so that no half a signature
    can be left.

    Args:
        folder: with a signature or without.
        key: file of an Ed25519 private key.

    Returns:
        Whether it was written: not where this very signature was there.

    Raises:
        BundleError: the folder is no intact bundle or engine set.
        UsageError: the file has no such key.
        OutputExistsError: the folder also holds what eecompile did not write there.
        BusyError: another process is writing the folder.
        BackendError: the package cryptography or filelock is missing.
    """
    loaded = private_key(key)
    (open_bundle if peek(folder) == "bundle" else open_engine_set)(folder)
    folder = folder.resolve()  # what a link leads to is replaced, not the link
    if read_signature(folder) == loaded.sign((folder / MANIFEST).read_bytes()):
        return False
    with new_folder(folder, replaces=True) as new:
        for path in folder.iterdir():
            if path.name != SIGNATURE:
                _same_file(path, new / path.name)
        write_signature(new, loaded)
    return True


def write_signature(folder: Path, key: Ed25519PrivateKey) -> None:
    """Sign the manifest in a folder that is being written."""
    (folder / SIGNATURE).write_bytes(key.sign((folder / MANIFEST).read_bytes()))


def _same_file(path: Path, new: Path) -> None:
    try:
        os.link(path, new, follow_symlinks=False)
    except OSError:  # file systems without links
        shutil.copy2(path, new, follow_symlinks=False)
