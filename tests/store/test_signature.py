"""Signatures with two keys, verified by OpenSSL as well; and what may become of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from eecompile.compiler.build import engine_set_from_bundle
from eecompile.errors import (
    BackendError,
    BundleError,
    DigestError,
    OutputExistsError,
    SignatureError,
    UsageError,
)
from eecompile.runtime.sampler import Sampler
from eecompile.store.bundle import MANIFEST, open_bundle, open_engine_set, peek
from eecompile.store.signature import SIGNATURE
from eecompile.store.signing import sign_folder
from tests.conftest import TARGETS
from tests.test_import import run, without

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
from cryptography.hazmat.primitives import serialization as form  # noqa: E402

Copy = Callable[[Path], Path]


class Keys(NamedTuple):
    """Files of a pair of keys."""

    private: Path
    public: Path


def written(folder: Path, name: str, key: object, *, ssh: bool = False, word: bytes = b"") -> Keys:
    """A pair of keys as openssl or ssh-keygen write them."""
    encoding = form.Encoding
    hidden = form.BestAvailableEncryption(word) if word else form.NoEncryption()
    kinds = form.PrivateFormat.OpenSSH if ssh else form.PrivateFormat.PKCS8
    shown = form.PublicFormat.OpenSSH if ssh else form.PublicFormat.SubjectPublicKeyInfo
    pair = Keys(folder / name, folder / f"{name}.pub")
    pair.private.write_bytes(key.private_bytes(encoding.PEM, kinds, hidden))  # type: ignore[attr-defined]
    public = key.public_key()  # type: ignore[attr-defined]
    pair.public.write_bytes(public.public_bytes(encoding.OpenSSH if ssh else encoding.PEM, shown))
    return pair


@pytest.fixture
def ours(tmp_path: Path) -> Keys:
    return written(tmp_path, "ours", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def theirs(tmp_path: Path) -> Keys:
    return written(tmp_path, "theirs", ed25519.Ed25519PrivateKey.generate(), ssh=True)


@pytest.fixture
def engines(small_sets: dict[str, Path], copied: Copy) -> Path:
    return copied(small_sets["per_exit"])


def refused(folder: Path, keys: Keys, *words: str) -> None:
    """By every function that opens, before anything is decoded."""
    for opening in (open_bundle, open_engine_set, peek):
        with pytest.raises(SignatureError) as caught:
            opening(folder, keys.public)
        assert all(word in str(caught.value) for word in (*words, str(keys.public)))
    with pytest.raises(SignatureError):
        Sampler.open(folder, signed_by=keys.public)


def test_a_signed_folder_opens_for_its_key_alone(engines: Path, ours: Keys, theirs: Keys) -> None:
    refused(engines, ours, f"no {SIGNATURE}")
    assert sign_folder(engines, ours.private)
    with Sampler.open(engines, signed_by=ours.public) as sampler:
        assert sampler.sample(1, steps=1).shape == (1, 1, 28, 28)
    Sampler.open(engines, signed_by=str(ours.public)).close()
    refused(engines, theirs, "did not make")
    Sampler.open(engines).close()  # a signature is no condition unless asked for


def test_a_bundle_is_signed_alike(small_bundle: Path, copied: Copy, theirs: Keys) -> None:
    folder = copied(small_bundle)
    sign_folder(folder, theirs.private)
    assert open_bundle(folder, theirs.public) == open_bundle(small_bundle)


def test_signing_is_deterministic_and_writes_nothing_twice(engines: Path, ours: Keys) -> None:
    before = {path.name: path.read_bytes() for path in engines.iterdir()}
    sign_folder(engines, ours.private)
    signature, place = (engines / SIGNATURE).read_bytes(), engines.stat().st_ino
    assert not sign_folder(engines, ours.private)
    assert engines.stat().st_ino == place
    (engines / SIGNATURE).write_bytes(b"")
    assert sign_folder(engines, ours.private)
    after = {path.name: path.read_bytes() for path in engines.iterdir()}
    assert after == before | {SIGNATURE: signature}
    assert sorted(path.name for path in engines.parent.iterdir()) == [
        "ours",
        "ours.pub",
        engines.name,
    ]


def test_another_key_replaces_the_signature(engines: Path, ours: Keys, theirs: Keys) -> None:
    sign_folder(engines, ours.private)
    assert sign_folder(engines, theirs.private)
    open_engine_set(engines, theirs.public)
    refused(engines, ours, "did not make")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_verifies_and_makes_the_same_signature(
    engines: Path, ours: Keys, tmp_path: Path
) -> None:
    sign_folder(engines, ours.private)
    made = tmp_path / "made.sig"
    common = ["openssl", "pkeyutl", "-rawin", "-in", str(engines / MANIFEST)]
    verify = ["-verify", "-pubin", "-inkey", str(ours.public), "-sigfile"]
    subprocess.run([*common, *verify, str(engines / SIGNATURE)], check=True, capture_output=True)
    sign = ["-sign", "-inkey", str(ours.private), "-out", str(made)]
    subprocess.run([*common, *sign], check=True, capture_output=True)
    assert made.read_bytes() == (engines / SIGNATURE).read_bytes()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_keys_of_ssh_keygen_sign_and_verify(engines: Path, tmp_path: Path) -> None:
    keys = Keys(tmp_path / "id", tmp_path / "id.pub")
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "who made it", "-f"]
    subprocess.run([*command, str(keys.private)], check=True)
    sign_folder(engines, keys.private)
    open_engine_set(engines, keys.public)


def test_whatever_changes_after_signing_is_found(engines: Path, ours: Keys) -> None:
    sign_folder(engines, ours.private)
    manifest, signature = engines / MANIFEST, engines / SIGNATURE
    whole, signed = manifest.read_bytes(), signature.read_bytes()
    for changed in (
        whole + b"\n",
        whole.replace(b"fashion-dit", b"fashion-dot"),
        b"",
        b"\xff\x00{",
    ):
        assert changed != whole
        manifest.write_bytes(changed)
        refused(engines, ours, "did not make")
    manifest.write_bytes(whole)
    for changed in (signed[:-1], signed + b"\0", b"", signed[:-1] + bytes([signed[-1] ^ 1])):
        signature.write_bytes(changed)
        refused(engines, ours, "did not make")
    signature.write_bytes(signed)
    (engines / open_engine_set(engines).segments[0].file).write_bytes(b"")
    with pytest.raises(DigestError):
        open_engine_set(engines, ours.public)


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_no_signature(
    engines: Path, ours: Keys, tmp_path: Path, kind: str
) -> None:
    sign_folder(engines, ours.private)
    signature, elsewhere = engines / SIGNATURE, tmp_path / "elsewhere"
    signature.rename(elsewhere)
    if kind == "link":
        signature.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(signature)
    else:
        signature.mkdir()
    refused(engines, ours, f"no {SIGNATURE}")
    sign_folder(engines, ours.private)
    assert signature.read_bytes() == elsewhere.read_bytes()
    assert not signature.is_symlink()


def test_files_that_are_no_keys_are_refused(engines: Path, ours: Keys, tmp_path: Path) -> None:
    words, none = tmp_path / "words", tmp_path / "none"
    words.write_bytes(b"-----BEGIN PRIVATE KEY-----\nwords\n-----END PRIVATE KEY-----\n")
    other = written(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    other_ssh = written(tmp_path, "rsa-ssh", rsa.generate_private_key(65537, 2048), ssh=True)
    locked = written(tmp_path, "locked", ed25519.Ed25519PrivateKey.generate(), word=b"secret")
    private = {
        words: "found no private key at",
        none: f"found no key at {none} (No such file or directory)",
        tmp_path: "found no key at",
        ours.public: "found no private key at",
        other.private: "found a key of another algorithm at",
        other_ssh.private: "found a key of another algorithm at",
        locked.private: "found an encrypted key at",
    }
    for path, message in private.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            sign_folder(engines, path)
    public = {
        words: "found no public key at",
        none: "found no key at",
        ours.private: "found no public key at",
        other.public: "found a key of another algorithm at",
        other_ssh.public: "found a key of another algorithm at",
    }
    for path, message in public.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            open_engine_set(engines, path)
    assert not (engines / SIGNATURE).exists()


def test_only_intact_folders_of_ours_are_signed(engines: Path, ours: Keys, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        sign_folder(tmp_path, ours.private)
    (engines / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"also holds notes\.txt"):
        sign_folder(engines, ours.private)
    (engines / "notes.txt").unlink()
    (engines / open_engine_set(engines).segments[0].file).write_bytes(b"")
    with pytest.raises(DigestError):
        sign_folder(engines, ours.private)


def test_a_folder_is_signed_where_files_cannot_be_linked(
    engines: Path, ours: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    sign_folder(engines, ours.private)
    open_engine_set(engines, ours.public)


def test_a_build_keeps_makes_and_drops_signatures(
    small_bundle: Path, engines: Path, ours: Keys, theirs: Keys
) -> None:
    target, signature = TARGETS["per_exit"], engines / SIGNATURE

    def build(*, force: bool = False, sign: Path | None = None) -> bool:
        built = engine_set_from_bundle(small_bundle, target, engines, force=force, sign=sign)
        return not built.up_to_date

    assert not build(sign=ours.private)
    open_engine_set(engines, ours.public)
    assert not build()  # what is unchanged keeps its signature
    open_engine_set(engines, ours.public)
    assert not build(sign=theirs.private)
    open_engine_set(engines, theirs.public)
    assert build(force=True)  # what is written anew has none unless asked for
    assert not signature.exists()
    assert build(force=True, sign=ours.private)
    open_engine_set(engines, ours.public)
    with pytest.raises(UsageError, match="no private key"):
        build(sign=ours.public)


def test_without_the_package_its_extra_is_named(engines: Path, ours: Keys) -> None:
    sign_folder(engines, ours.private)
    code = without("cryptography") + (
        "import eecompile\n"
        "eecompile.Sampler.open(sys.argv[1]).close()\n"
        "try:\n"
        "    eecompile.Sampler.open(sys.argv[1], signed_by=sys.argv[2])\n"
        "except eecompile.BackendError as error:\n"
        "    print(error.remedy)\n"
    )
    assert run(code, str(engines), str(ours.public)).strip() == "pip install 'eecompile[sign]'"


def test_verifying_needs_no_compiler(engines: Path, ours: Keys) -> None:
    sign_folder(engines, ours.private)
    code = without("torch", "onnx", "onnx_ir", "filelock", "typer", "rich") + (
        "import eecompile\n"
        "eecompile.Sampler.open(sys.argv[1], signed_by=sys.argv[2]).close()\n"
        "print('opened')"
    )
    assert run(code, str(engines), str(ours.public)).strip() == "opened"


def test_a_key_in_place_of_a_folder_is_a_bundle_error(ours: Keys) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(ours.private, ours.public)
    assert not isinstance(caught.value, (SignatureError, BackendError))
