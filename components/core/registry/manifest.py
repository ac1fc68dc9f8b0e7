"""What a registered version consists of, and how a reader knows that it is what was registered.

`registered.json` lists every file of the version with size and sha256, and its own sha256 is a tag of the version in
MLflow: who can write the bucket cannot write that. `model.sig` signs the same files where a key was given.
"""

import dataclasses
import hashlib
import json
from pathlib import PurePosixPath
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import signing, versions
from qlora_pipelines.components.core.store import storage, transfer

MANIFEST = "registered.json"
MANIFEST_TAG = "qlora.manifest_sha256"
MODEL = "model"


@dataclasses.dataclass(frozen=True)
class Registered:
    """A version's folder, size and sha256 of its files by path, and the sha256 and content of their manifest."""

    uri: str
    files: dict[str, dict[str, Any]]
    sha256: str
    content: bytes

    @property
    def signed_files(self) -> dict[str, dict[str, Any]]:
        """What a signature covers: the files, and the manifest itself."""
        return self.files | {MANIFEST: {"size": len(self.content), "sha256": self.sha256}}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["size"] for file in self.files.values())


def entry(content: bytes) -> dict[str, Any]:
    """Size and sha256 of a file, as a manifest lists them."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def make(uri: str, files: dict[str, dict[str, Any]]) -> Registered:
    """The manifest of these files; the same files give the same bytes."""
    content = json.dumps({"format": 1, "files": files}, indent=1, sort_keys=True).encode()
    return Registered(uri, files, hashlib.sha256(content).hexdigest(), content)


def read(uri: str, sha256: str = "") -> Registered:
    """The manifest of the version whose files lie at `uri`.

    Args:
        uri: the version's source.
        sha256: what the registry says the manifest's is; '': whatever is there.

    Raises:
        InputError: it is gone, another, or names files outside its folder.
    """
    place = storage.join(uri, MANIFEST)
    content = transfer.read_range(place, 0, 1 << 26)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise InputError(f"{place} was altered: its sha256 is {found[:12]}, the registry says {sha256[:12]}")
    try:
        files = json.loads(content)["files"]
        entries = {
            str(name): {"size": int(file["size"]), "sha256": str(file["sha256"])} for name, file in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{place} is no manifest") from None
    for name in entries:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts or path.as_posix() != name:
            raise InputError(f"{place} names {name!r}, which is no path below its folder")
    return Registered(uri, entries, found, content)


def of_version(version: Any) -> Registered:
    """What an MLflow version consists of, its manifest checked against the tag; its files are there in their sizes.

    Args:
        version: MLflow's version.

    Raises:
        InputError: it was not registered by qlora or not to the end, or something of it is gone or altered.
    """
    what = f"{version.name} version {version.version}"
    if versions.KEY_TAG not in version.tags:
        raise InputError(
            f"{what} was not registered by qlora: there is nothing to verify it by; MLflow can download it"
        )
    if MANIFEST_TAG not in version.tags:
        raise InputError(f"{what} is not whole: its registration was cut short; run its pipeline again")
    source = version.source.rstrip("/")
    transfer.check_address(source, f"the source of {what}")
    found = read(source, version.tags[MANIFEST_TAG])
    present = transfer.sizes(source)
    for name, file in found.files.items():
        if present.get(name) != file["size"]:
            raise InputError(f"{source}: {name} {'was altered: its size is another' if name in present else 'is gone'}")
    return found


def check_signature(version: Registered, public_key: str) -> str:
    """Says how the version is signed, after checking it where a public key is given.

    Raises:
        InputError: a public key is given and the version is unsigned, or signed otherwise.
    """
    signed = signing.SIGNATURE in transfer.sizes(version.uri)
    if not public_key:
        return "signed, not checked: no public key is given" if signed else "unsigned"
    if not signed:
        raise InputError(f"{version.uri} is unsigned, but the public key {public_key} is to verify it")
    signature = transfer.read_range(storage.join(version.uri, signing.SIGNATURE), 0, 1 << 26)
    signing.verify(signature, version.signed_files, public_key)
    return f"signed by the key {signing.fingerprint(public_key)[:12]}"
