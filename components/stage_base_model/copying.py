"""From the hub into the store: several files at a time, each checked against the hub's checksum first."""

import concurrent.futures
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import local_files, storage
from qlora_pipelines.components.core.store.storage import Entry

PARALLEL = 4
"""Files at a time; the hub's client may open several connections per file."""
TRIES = 3
"""Attempts per file; within one, the hub's client resumes a connection where it was cut."""


def copy(name: str, revision: str, files: list[Entry], uri: str) -> dict[str, dict[str, Any]]:
    """Copies what is not there yet.

    Args:
        name: Hugging Face id.
        revision: a commit.
        files: what to copy, with the hub's checksums.
        uri: folder of this revision in the store.

    Returns:
        Size and sha256 of every file by path, as a manifest lists them.

    Raises:
        InputError: the hub does not give a file, or gives other bytes than its listing says.
    """
    present = storage.sizes(uri)
    missing = [file for file in files if present.get(file.path) != file.size]
    log(f"copying {name} at {revision[:12]} into the store: {len(missing)} of {len(files)} files")
    progress = Progress("copied", len(missing))
    checksums = {file.path: file.etag for file in files}
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        jobs = {pool.submit(_copy, name, revision, file, uri): file for file in missing}
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                checksums[jobs[job].path] = job.result()
                progress.at(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {file.path: {"size": file.size, "sha256": _sha256(uri, file, checksums[file.path])} for file in files}


def _copy(name: str, revision: str, file: Entry, uri: str) -> str:
    """Copies one file; returns its sha256."""
    # A folder next to the files: where the store is local, a complete file is renamed, not copied again.
    parent = None if storage.is_remote(uri) else storage.local_path(uri).parent
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".staging-") as folder:
        path = _download(name, revision, file.path, Path(folder))
        checksum = hub.checksum(path, file.etag)
        if checksum != file.etag or path.stat().st_size != file.size:
            raise InputError(
                f"base model {name}: {file.path} is not what the hub lists: {checksum[:19]}, not {file.etag[:19]};"
                " nothing of it is kept; run again"
            )
        sha256 = checksum if checksum.startswith("sha256:") else hub.checksum(path, "sha256:")
        if parent:
            target = storage.local_path(storage.join(uri, file.path))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        else:
            storage.upload_file(path, storage.join(uri, file.path))
    return sha256


def _download(name: str, revision: str, path: str, folder: Path) -> Path:
    import huggingface_hub

    for left in reversed(range(TRIES)):
        try:
            local_files.join_local(folder, path)
            return Path(huggingface_hub.hf_hub_download(name, path, revision=revision, local_dir=folder))
        except Exception as error:  # the hub's client raises many unrelated types
            if not left:
                raise InputError(
                    f"base model {name} at {revision[:12]}: {path} could not be copied: {first_line(error)};"
                    " run again, finished files are kept"
                ) from None
    raise AssertionError("unreachable")


def _sha256(uri: str, file: Entry, checksum: str) -> str:
    """The sha256 of a copied file; a small one that was there already and has git's blob id is read again."""
    if checksum.startswith("sha256:"):
        return checksum.removeprefix("sha256:")
    return hashlib.sha256(storage.read_bytes(storage.join(uri, file.path))).hexdigest()
