"""Finished work found by its key, and attempts that never meet.

A pod thought dead may still write. So each attempt at `key_uri` writes under a folder of its own, and its
`manifest.json`, written last, names every file with size and sha256. Readers follow manifests only: what has
none is not there.

    <key_uri>/<attempt id>/...            the files
    <key_uri>/<attempt id>/manifest.json  written last
"""

import contextlib
import dataclasses
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import storage

MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Finished:
    """Whole work: the URI of its folder, and what its manifest says about it."""

    uri: str
    info: dict[str, Any]
    files: dict[str, dict[str, Any]]


def find(key_uri: str, **wanted: Any) -> Finished | None:
    """The finished work under a key (the earliest attempt where there are several), or None.

    Work that has lost files since is named in the log and passed over, so that it is done anew.

    Args:
        key_uri: where the key's attempts lie.
        **wanted: what the work's info must say; other work is passed over.
    """
    if storage.is_s3(key_uri):
        names = [entry.path for entry in storage.listing(key_uri)]
    else:
        folder = storage.local_path(key_uri)
        names = [path.relative_to(folder).as_posix() for path in folder.glob(f"*/{MANIFEST}")]
    for name in sorted(names):
        attempt, _, rest = name.partition("/")
        if rest == MANIFEST:
            found = read(storage.join(key_uri, attempt))
            if not wanted.items() <= found.info.items():
                continue
            if gone := missing(found):
                log(f"{found.uri} has lost {', '.join(gone)}: it is no longer taken for finished")
                continue
            return found
    return None


def read(uri: str) -> Finished:
    """The manifest of finished work at `uri`.

    Raises:
        InputError: there is no manifest, so the work is not whole; or it is damaged.
    """
    path = storage.join(uri, MANIFEST)
    try:
        manifest = json.loads(storage.read_bytes(path))
        return Finished(uri=uri, info=dict(manifest["info"]), files=dict(manifest["files"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; remove its folder, and its work is done anew") from None


def missing(finished: Finished) -> list[str]:
    """Files of finished work that are gone, or not of the size that its manifest says."""
    present = storage.sizes(finished.uri)
    return [name for name, file in finished.files.items() if present.get(name) != file["size"]]


def new_uri(key_uri: str) -> str:
    """A folder for a new attempt; later ones sort behind."""
    return storage.join(key_uri, f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:8]}")


def finish(uri: str, info: dict[str, Any], files: dict[str, dict[str, Any]]) -> Finished:
    """Writes the manifest of an attempt whose files are all there: from now on the work is finished.

    Args:
        uri: the attempt's folder.
        info: what a reader wants to know of the work, JSON.
        files: `size` in bytes and `sha256` of every file, by its path in the folder.
    """
    manifest = {"format": 1, "info": info, "files": files}
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode())
    return Finished(uri, info, files)


class Attempt:
    """One attempt at the work of a key: fill `folder`, then `commit`."""

    def __init__(self, key_uri: str) -> None:
        """Takes a folder: the final one where the store is local, a temporary one where it is S3."""
        self.uri = new_uri(key_uri)
        self.committed = False
        self.folder = Path(tempfile.mkdtemp()) if storage.is_s3(key_uri) else storage.local_path(self.uri)
        self.folder.mkdir(parents=True, exist_ok=True)

    def commit(self, info: dict[str, Any]) -> Finished:
        """Uploads the files, then writes the manifest: from now on the work is there.

        Args:
            info: what a reader wants to know of the work, JSON.
        """
        files = {
            path.relative_to(self.folder).as_posix(): {"size": path.stat().st_size, "sha256": storage.sha256_file(path)}
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }
        if storage.is_s3(self.uri):
            storage.upload(self.folder, self.uri)
        finished = finish(self.uri, info, files)
        self.committed = True
        return finished


@contextlib.contextmanager
def attempt(key_uri: str) -> Iterator[Attempt]:
    """An attempt whose files are removed if the work raises before it is committed; a temporary folder in any case."""
    work = Attempt(key_uri)
    try:
        yield work
    finally:
        if storage.is_s3(key_uri) or not work.committed:
            shutil.rmtree(work.folder, ignore_errors=True)
