"""From the hub into the store: several files at a time, each checked against the hub's hash before it is there."""

import concurrent.futures
import hashlib
import tempfile
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.models.base_model import HubFile
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import storage

PARALLEL = 4
"""Files at a time; the hub's client may open several connections a file."""
TRIES = 3
"""How often a file is asked for; within a try, the hub's client takes up a cut connection where it was cut."""


def copy(name: str, revision: str, files: list[HubFile], uri: str) -> dict[str, dict[str, Any]]:
    """Copies what is not there yet.

    Args:
        name: Hugging Face id.
        revision: a commit.
        files: what to copy.
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
    digests = {file.path: file.digest for file in files}
    with concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        jobs = {pool.submit(_copy, name, revision, file, uri): file for file in missing}
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                digests[jobs[job].path] = job.result()
                progress.at(done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {file.path: {"size": file.size, "sha256": _sha256(uri, file, digests[file.path])} for file in files}


def _copy(name: str, revision: str, file: HubFile, uri: str) -> str:
    """Copies one file; returns its sha256."""
    # A folder beside the files: what is whole is renamed, not copied again, where the store is local.
    beside = None if storage.is_s3(uri) else storage.local_path(uri).parent
    if beside:
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".staging-") as folder:
        path = _download(name, revision, file, Path(folder))
        found = hashed(path, file.digest)
        if found != file.digest or path.stat().st_size != file.size:
            raise InputError(
                f"base model {name}: {file.path} is not what the hub lists: {found[:19]}, not {file.digest[:19]};"
                " nothing of it is kept; run again"
            )
        sha256 = f"sha256:{storage.sha256_file(path)}" if file.digest.startswith("git:") else found
        if beside:
            target = storage.local_path(storage.join(uri, file.path))
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        else:
            storage.upload_file(path, storage.join(uri, file.path))
    return sha256


def _download(name: str, revision: str, file: HubFile, folder: Path) -> Path:
    import huggingface_hub

    for left in reversed(range(TRIES)):
        try:
            return Path(huggingface_hub.hf_hub_download(name, file.path, revision=revision, local_dir=folder))
        except Exception as error:  # the hub's client raises many unrelated kinds
            if not left:
                reason = first_line(error)
                raise InputError(
                    f"base model {name} at {revision[:12]}: {file.path} could not be copied: {reason};"
                    " run again, what has come is kept"
                ) from None
    raise AssertionError("unreachable")


def hashed(path: Path, like: str) -> str:
    """The digest of a file in the manner of `like`: `sha256:...`, or `git:...`, git's blob id."""
    if like.startswith("sha256:"):
        return f"sha256:{storage.sha256_file(path)}"
    blob = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            blob.update(block)
    return f"git:{blob.hexdigest()}"


def _sha256(uri: str, file: HubFile, digest: str) -> str:
    if digest.startswith("sha256:"):
        return digest.removeprefix("sha256:")
    return hashlib.sha256(storage.read_bytes(storage.join(uri, file.path))).hexdigest()  # a small file of git
