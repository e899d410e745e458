"""Signatures of bundles and engine sets: Ed25519 (RFC 8032).

What is signed are the bytes of the manifest, which has the digest of every other file.

Keys are files of ``openssl genpkey -algorithm ed25519`` (PEM) or ``ssh-keygen -t ed25519``
(OpenSSH). The signature is 64 bytes in a file of its own, so that other programs can make and
verify it, such as ``openssl pkeyutl -rawin``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eecompile.backends import install
from eecompile.errors import BackendError, SignatureError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

SIGNATURE = "manifest.json.sig"
_BYTES = 64  # of a signature
_MOST = 1 << 16  # bytes that a key's file may have


def private_key(path: Path) -> Ed25519PrivateKey:
    """The key that signs.

    Raises:
        UsageError: the file has no Ed25519 private key, or has it encrypted.
        BackendError: the package cryptography is missing.
    """
    _check_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    data = _key_bytes(path)
    ssh = b"BEGIN OPENSSH PRIVATE KEY" in data
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(data, None)
    except TypeError as error:
        raise _no_key(path, "an encrypted key", "a private key without a passphrase") from error
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and binascii's
        raise _no_key(path, "no private key", "an Ed25519 private key") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "a key of another algorithm", "an Ed25519 private key")
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The key that verifies; errors are those of :func:`private_key`."""
    _check_library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    data = _key_bytes(path)
    ssh = data.startswith(b"ssh-")
    load = serialization.load_ssh_public_key if ssh else serialization.load_pem_public_key
    try:
        key = load(data)
    except Exception as error:  # ValueError, UnsupportedAlgorithm, and binascii's
        raise _no_key(path, "no public key", "an Ed25519 public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "a key of another algorithm", "an Ed25519 public key")
    return key


def check_signature(folder: Path, manifest: bytes, signed_by: Path) -> None:
    """Pass when the key signed a manifest of these bytes.

    Raises:
        SignatureError: there is no signature in the folder, or another.
        UsageError: the file has no Ed25519 public key.
        BackendError: the package cryptography is missing.
    """
    from_key, path = public_key(signed_by), folder / SIGNATURE
    remedy = "do not open it, unless whoever made the folder signs it: eecompile sign"
    signature = read_signature(folder)
    if signature is None:
        raise SignatureError(
            found=f"no {SIGNATURE} in {folder}",
            expected=f"a signature by the key {signed_by}",
            remedy=remedy,
        )
    try:
        from_key.verify(signature, manifest)
    except Exception as error:  # InvalidSignature, which has no message
        raise SignatureError(
            found=f"{path}, which the key {signed_by} did not make of this manifest",
            expected="a signature by that key, of a folder that nobody has changed since",
            remedy=remedy,
        ) from error


def read_signature(folder: Path) -> bytes | None:
    """The signature in a folder; None where there is none, or a link in its place."""
    path = folder / SIGNATURE
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(_BYTES + 1)


def _check_library() -> None:
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError as error:
        raise BackendError(
            found=f"no usable package cryptography ({error})",
            expected="it, for signatures",
            remedy=install("sign"),
        ) from error


def _key_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST)
    except OSError as error:
        raise UsageError(
            found=f"no key at {path} ({error.strerror or error})",
            expected="the file of an Ed25519 key",
            remedy="check the path",
        ) from error


def _no_key(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(
        found=f"{found} at {path}",
        expected=f"{expected}, in PEM or OpenSSH's form",
        remedy="make one: openssl genpkey -algorithm ed25519 -out KEY, and "
        "openssl pkey -in KEY -pubout -out PUBLIC_KEY",
    )
