"""Local copies of objects, each compared with what is known of it: a sha256, an MD5, S3's checksum, the first read.

An `etag` of a listing is `sha256:...` for files of a manifest and `etag:...` for other objects. Where there is no
checksum (Azure, some uploads in parts), the sha256 of the first read is kept in the store, and later reads must give
the same bytes.
"""

import functools
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, local_files, objects, s3, storage


def fetch(uri: str, entry: storage.Entry, folder: Path) -> Path:
    """A local file with the content that a listing saw: the very file where it is local, else a copy in `folder`.

    Raises:
        InputError: the object changed since it was listed, or cannot be read; or other bytes came.
    """
    if not storage.is_remote(uri):
        return storage.local_path(uri)
    target = folder / uuid.uuid4().hex
    _copy(uri, entry, target)
    return target


def copy(uri: str, entry: storage.Entry, target: Path) -> None:
    """Copies one file of finished work to a local path, where it appears when every byte is as the manifest says.

    Raises:
        InputError: it is gone, or has another content.
    """
    with local_files.replacing(target) as path:
        if storage.is_remote(uri):
            _copy(uri, entry, path)
            return
        with local_files.errors(uri, "copied"):
            shutil.copyfile(storage.local_path(uri), path)
        if f"sha256:{storage.sha256_file(path)}" != entry.etag:
            raise InputError(f"{uri} is not the file that its manifest lists")


def download(uri: str, folder: Path, entries: Iterable[storage.Entry] | None = None) -> Path:
    """A local folder with the files at `uri`: the very folder where it is local, else a copy in `folder`.

    Args:
        uri: a folder or a prefix.
        folder: where the copies go; each appears under its name when it is whole and its bytes are the listed ones.
        entries: those of a listing to copy; None: all.

    Raises:
        InputError: an object changed since it was listed, or cannot be read; other bytes came; or a name leads out of
            `folder`.
    """
    if not storage.is_remote(uri):
        return storage.local_path(uri)
    for entry in storage.listing(uri) if entries is None else entries:
        with local_files.replacing(local_files.join_local(folder, entry.path)) as path:
            _copy(storage.file_uri(uri, entry), entry, path)
    return folder


def fetch_work(work: attempts.Finished, folder: Path) -> Path:
    """A local folder with finished work, every byte as its manifest says: the very folder where it is local.

    Args:
        work: what to fetch.
        folder: where a copy goes.

    Raises:
        InputError: a file is gone or not whole, or has another content; it is named.
    """
    if not storage.is_remote(work.uri):
        attempts.check_files(work.uri, work.files, work.uri, "run again what made it")
        return storage.local_path(work.uri)
    download(work.uri, folder, entries(work))
    (folder / attempts.MANIFEST).write_bytes(attempts.manifest(work))
    return folder


def entries(work: attempts.Finished) -> list[storage.Entry]:
    """The files of finished work as a listing has them, told apart by the sha256 that their manifest says."""
    return [storage.Entry(name, file["size"], f"sha256:{file['sha256']}") for name, file in work.files.items()]


def read(uri: str, entry: storage.Entry) -> bytes:
    """The whole content of a small listed object.

    Raises:
        InputError: the object changed since it was listed, or cannot be read; or other bytes came.
    """
    with tempfile.TemporaryDirectory() as folder:
        return fetch(uri, entry, Path(folder)).read_bytes()


def etag(entry: storage.Entry) -> str:
    """The ETag that a listing gave an object, which a read of it must match; '' where there is none."""
    return entry.etag.removeprefix("etag:") if entry.etag.startswith("etag:") else ""


def verify(uri: str, entry: storage.Entry, read: Callable[[Any], None], target: Path | None = None) -> None:
    """Reads an object and compares what came with what is known of it.

    Args:
        uri: the object.
        entry: what a listing or a manifest says of it.
        read: reads all of it and gives the bytes to a digest of `hashlib`; it may be called again.
        target: the local file that `read` copies it to; None: it does not.

    Raises:
        InputError: the object changed since it was listed, or cannot be read; or other bytes came.
    """
    kind, _, known = entry.etag.partition(":")
    for last in (False, True):
        digest: Any = hashlib.md5(usedforsecurity=False) if objects.is_md5(etag(entry)) else hashlib.sha256()
        read(digest)
        found = digest.hexdigest()
        if kind != "sha256" or found == known:
            break
        if last:  # the bytes were not changed on their way: what is stored is another file
            raise InputError(f"{uri} is not the file that its manifest lists: its sha256 is {found[:12]}")
    if kind == "sha256" or (digest.name == "md5" and objects.check_md5(uri, known, found)):
        return
    if digest.name == "md5":  # which says nothing of an encrypted object
        read(digest := hashlib.sha256())
    found = digest.hexdigest()
    if first_read(uri, entry, found, verified=target is not None and s3.check_stored(uri, target)) != found:
        raise InputError(f"{uri} does not give the bytes of its first read, and its ETag is the same; put it back")


def _copy(uri: str, entry: storage.Entry, target: Path) -> None:
    """Copies an object to a local file and compares what came with what is known of it."""
    verify(uri, entry, functools.partial(objects.download, uri, entry.size, etag(entry), target), target)


def is_copy(path: Path, uri: str, entry: storage.Entry) -> bool:
    """Whether a local file that was kept has the size and the bytes of a listed object, as far as they are known."""
    if not path.is_file() or path.stat().st_size != entry.size:
        return False
    kind, _, known = entry.etag.partition(":")
    found = storage.sha256_file(path)
    if kind == "sha256":
        return found == known
    with path.open("rb") as file:
        if objects.is_md5(known) and hashlib.file_digest(file, "md5").hexdigest() == known:
            return True
    return first_read(uri, entry, "") == found


def first_read(uri: str, entry: storage.Entry, sha256: str, *, verified: bool = False) -> str:
    """The sha256 that an object without an MD5 had at its first read; `sha256` where this is the first.

    It is kept in the store by address, size and ETag. '' is only looked up; one that is verified otherwise is kept.
    """
    known = ""
    if not os.environ.get(storage.STORE_VARIABLE):
        return sha256
    name = hashlib.sha256("\n".join([uri, str(entry.size), entry.etag]).encode()).hexdigest()
    record = storage.join(storage.root(), "checksums", name)
    try:
        known = storage.read_bytes(record).decode()
    except TransientError:
        raise
    except InputError:  # there is none
        if sha256 and not verified:
            log(f"{uri} has no checksum to compare with: not verified this time; its sha256 {sha256[:12]} is kept")
    if sha256 and (not known or (verified and known != sha256)):  # what an earlier read got wrong is corrected
        storage.write_bytes(record, sha256.encode())
        return sha256
    return known
