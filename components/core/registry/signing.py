"""Signatures of registered models, in OpenSSF's model-signing format.

`model.sig` signs the sha256 of every file next to it, so the model_signing command line verifies a pulled folder too.
The hashes are those of the manifest: nothing is read again to be signed.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError

SIGNATURE = "model.sig"
SIGNING_VARIABLE = "QLORA_SIGNING_KEY"
"""Path of the private key (PEM, elliptic curve P-256, P-384 or P-521, no password); not set: models are unsigned."""
VERIFYING_VARIABLE = "QLORA_VERIFY_KEY"
"""Path of the public key (PEM) that `qlora pull` demands a signature of."""

Files = dict[str, dict[str, Any]]


def signing_key() -> str:
    """The private key's path from the environment, checked to be a key; '' where none is given.

    Raises:
        InputError: there is no key that can sign; nothing of its content is shown.
    """
    path = os.environ.get(SIGNING_VARIABLE, "")
    if path:
        _load("private", path)
    return path


def sign(files: Files, key: str) -> bytes:
    """The content of `model.sig` for files next to it.

    Args:
        files: sha256 of every file by path.
        key: path of the private key.

    Raises:
        InputError: it is no key that can sign.
    """
    from model_signing import manifest
    from model_signing._hashing.hashing import Digest
    from model_signing._signing.signing import Payload

    # What model-signing makes of a folder by hashing it, from hashes that are known already.
    items = [
        manifest.FileManifestItem(path=Path(name), digest=Digest("sha256", bytes.fromhex(file["sha256"])))
        for name, file in files.items()
    ]
    ignored = [Path(name) for name in (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")]
    hashed = manifest.Manifest("model", items, manifest._FileSerialization("sha256", ignore_paths=ignored))
    return str(_load("private", key).sign(Payload(hashed)).bundle.to_json()).encode()


def fingerprint(signature: bytes) -> str:
    """Which key made a signature: sha256 of its public half in PEM, in hexadecimal."""
    return str(json.loads(signature)["verificationMaterial"]["publicKey"].get("hint", ""))


def verify(signature: bytes, files: Files, key: str) -> None:
    """Checks that a signature is one of this key, over exactly these files.

    Args:
        signature: content of `model.sig`.
        files: sha256 of every file by path.
        key: path of the public key.

    Raises:
        InputError: another key signed, or other files were signed; the first that differs is named.
    """
    from model_signing._signing.sign_sigstore_pb import Signature

    verifier = _load("public", key)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / SIGNATURE
        path.write_bytes(signature)
        try:
            signed = verifier.verify(Signature.read(path))
        except Exception as error:  # cryptography, pydantic, json and ValueError, depending on which bytes are wrong
            why = "it was made with another key" if "Key mismatch" in str(error) else "it does not fit its content"
            raise InputError(f"{SIGNATURE} is not a signature of the key {key}: {why}") from None
    found = {item.identifier: item.digest.digest_hex for item in signed.resource_descriptors()}
    expected = {name: file["sha256"] for name, file in files.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise InputError(f"{SIGNATURE} does not sign this {name}")


def _load(half: str, path: str) -> Any:
    """model-signing's signer with a private key, or verifier with a public one."""
    from model_signing._signing.sign_ec_key import Signer, Verifier

    try:
        return {"private": Signer, "public": Verifier}[half](Path(path))
    except OSError as error:
        raise InputError(f"{half} key {path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError):  # their texts may quote the key
        raise InputError(
            f"{half} key {path}: not a {half} key in PEM of curve P-256, P-384 or P-521 without password"
        ) from None
