"""What must hold before anything is compared: folders that belong together, packages, a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from eecompile.backends import backend_from_library, install
from eecompile.errors import BackendError, UsageError
from eecompile.recipe import load_recipe
from eecompile.store.bundle import MANIFEST, open_bundle, open_engine_set, sha256
from eecompile.store.files import is_file
from eecompile.store.manifest import BundleManifest, EngineManifest
from eecompile.store.shipped import named_file

Folder = str | PathLike[str]


def checked_bundle(folder: Folder) -> BundleManifest:
    """The manifest of a bundle; its files' digests are checked once a process.

    Raises:
        BundleError: there is no intact bundle.
    """
    manifest: BundleManifest = _checked(open_bundle, Path(folder))
    return manifest


def checked_engine_set(folder: Folder) -> EngineManifest:
    """The manifest of an engine set; its files' digests are checked once a process.

    Raises:
        BundleError: there is no intact engine set.
    """
    manifest: EngineManifest = _checked(open_engine_set, Path(folder))
    return manifest


def check_belongs(bundle: Folder, engines: Folder) -> EngineManifest:
    """The manifest of an engine set, when it was built from a bundle.

    Raises:
        BundleError: either is no intact folder of its kind.
        UsageError: it was built from another bundle.
    """
    wanted, found = checked_bundle(bundle), checked_engine_set(engines)
    if found.bundle_digest != wanted.digest:
        other = found.interface.name != wanted.interface.name
        raise UsageError(
            found=f"an engine set of {'network' if other else 'another export of'} "
            f"{found.interface.name} at {engines}",
            expected=f"one built from the bundle of {wanted.interface.name} at {bundle}",
            remedy="build that bundle for the target again, or give the bundle it came from",
        )
    return found


def no_gpu(backend: str) -> BackendError:
    """What is raised where a backend would need a GPU."""
    return BackendError(
        found="no NVIDIA GPU",
        expected=f"one, for {backend}",
        remedy="compare on a machine with a GPU and its driver, or leave that backend out",
    )


def require(package: str, extra: str = "compare") -> None:
    """Pass when a package is installed; a backend's library comes with the backend's extra.

    Raises:
        BackendError: it is not.
    """
    if find_spec(package) is None:
        backend = backend_from_library(package)
        raise BackendError(
            found=f"no package {package}",
            expected="it, for this comparison",
            remedy=install(backend.extra if backend else extra),
        )


def check_recipe(manifest: BundleManifest, path: Path) -> Path:
    """The checkpoint of a recipe, when a bundle was exported from it.

    Raises:
        RecipeError: the recipe is malformed.
        UsageError: its network or its checkpoint is not the bundle's.
    """
    path = named_file("export", path)
    recipe = load_recipe(path)
    if recipe.name != manifest.interface.name or recipe.network.files:
        what = "ONNX files" if recipe.network.files else f"the network {recipe.name}"
        raise UsageError(
            found=f"a recipe of {what} at {path}",
            expected=f"that of the torch network {manifest.interface.name}, the bundle's",
            remedy="give the recipe that the bundle was exported with, or leave it out",
        )
    checkpoint = path.parent / (recipe.network.checkpoint or "")
    digest = sha256(checkpoint) if is_file(checkpoint) else "none"
    if digest not in manifest.sources.values():
        known = ", ".join(f"{name} ({each[:12]}...)" for name, each in manifest.sources.items())
        raise UsageError(
            found=f"checkpoint {checkpoint.name} (SHA-256 {digest[:12]}...) of {path}",
            expected=f"the bundle's: {known}",
            remedy="give the recipe that the bundle was exported with, or export again",
        )
    return checkpoint


def _checked(open_: Callable[[Path], Any], folder: Path) -> Any:
    try:
        stamp = (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _opened(open_, folder, stamp)


@lru_cache(maxsize=32)
def _opened(open_: Callable[[Path], Any], folder: Path, stamp: int) -> Any:
    return open_(folder)
