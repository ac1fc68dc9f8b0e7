"""What a registered version consists of, and how a reader knows that it is what was registered.

`registered.json` lists every file of the version with size and sha256, and its own sha256 is a tag of the version in
MLflow: who can write the bucket cannot write that. `model.sig` signs the same files where a key was given.
"""

import dataclasses
import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import signing, versions
from qlora_pipelines.components.core.store import attempts, local_files, models_store, storage

MANIFEST = "registered.json"
MANIFEST_TAG = "qlora.manifest_sha256"
MODEL = "model"
ADDED = (
    "MLmodel", "README.md", "requirements.txt", "python_env.yaml", "input_example.json", "serving_input_example.json",
    "components", "adapter", MANIFEST, signing.SIGNATURE, attempts.ALIVE,
)  # fmt: skip
"""What may be next to a merged model besides the files of its manifest: what registration adds, and a sign of life."""
Files = dict[str, dict[str, Any]]
"""`size` in bytes and `sha256` of each file, by its path."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A version's folder, the files in it, and the manifest's own sha256 and content."""

    uri: str
    files: Files
    sha256: str
    content: bytes

    @property
    def signed_files(self) -> Files:
        """What a signature covers: the files, and the manifest itself."""
        return self.files | {MANIFEST: {"size": len(self.content), "sha256": self.sha256}}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file["size"] for file in self.files.values())


def entry(content: bytes) -> dict[str, Any]:
    """Size and sha256 of a file, as a manifest lists them."""
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def make(uri: str, files: Files) -> Manifest:
    """The manifest of these files; the same files give the same bytes."""
    content = json.dumps({"format": 1, "files": files}, indent=1, sort_keys=True).encode()
    return Manifest(uri, files, hashlib.sha256(content).hexdigest(), content)


def read(uri: str, sha256: str = "") -> Manifest:
    """The manifest of the version whose files are at `uri`.

    Args:
        uri: the version's source.
        sha256: what the registry says the manifest's is; '': not checked.

    Raises:
        InputError: it is gone, altered, or names files outside its folder.
    """
    path = storage.join(uri, MANIFEST)
    content = storage.read_range(path, 0, 1 << 26)
    found = hashlib.sha256(content).hexdigest()
    if sha256 and found != sha256:
        raise InputError(f"{path} was altered: its sha256 is {found[:12]}, the registry says {sha256[:12]}")
    return Manifest(uri, parse_files(path, content), found, content)


def parse_files(path: str, content: bytes) -> Files:
    """The files that a manifest lists, whether a registered version's or a step's.

    Args:
        path: the manifest's, for the message.
        content: the manifest's.

    Raises:
        InputError: it is no manifest, or names files outside its folder.
    """
    try:
        files = {
            str(name): {"size": int(file["size"]), "sha256": str(file["sha256"])}
            for name, file in json.loads(content)["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is no manifest") from None
    for name in files:
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or "\\" in name or not inside.parts or str(inside) != name:
            raise InputError(f"{path} names {name!r}, which is no path below its folder")
    return files


def is_added(path: str) -> bool:
    """Whether a path next to a merged model is one of ADDED or below it, also while it is being written."""
    return whole_name(path).partition("/")[0] in ADDED


def whole_name(path: str) -> str:
    """The name that a local file gets when it is whole (core/store/local_files.py); any other path as it is."""
    return re.sub(rf"(^|/)\.([^/]+)\.[0-9a-f]{{12}}{re.escape(local_files.PART)}$", r"\1\2", path)


def of_version(version: Any) -> Manifest:
    """The manifest of an MLflow version, checked against the tag; its files are all there with their sizes.

    Args:
        version: MLflow's version.

    Raises:
        InputError: it was not registered by qlora or not completely, or a file of it is gone or altered.
    """
    what = f"{version.name} version {version.version}"
    if versions.KEY_TAG not in version.tags:
        raise InputError(
            f"{what} was not registered by qlora: there is nothing to verify it by; MLflow can download it"
        )
    if MANIFEST_TAG not in version.tags:
        raise InputError(f"{what} is not whole: its registration was cut short; run its pipeline again")
    source = version.source.rstrip("/")
    storage.check_address(source, f"the source of {what}")
    models_store.note(source)
    manifest = read(source, version.tags[MANIFEST_TAG])
    present = storage.sizes(source)
    for name, file in manifest.files.items():
        if present.get(name) != file["size"]:
            raise InputError(f"{source}: {name} {'was altered: its size is another' if name in present else 'is gone'}")
    return manifest
