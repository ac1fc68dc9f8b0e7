"""Files by URI: a local folder or `s3://bucket/prefix`, the same few verbs for both."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import local_files, s3

STORE_VARIABLE = "QLORA_STORE"
PARALLEL = 8
"""Files, or parts of one, in work at a time."""
PART = s3.PART


@dataclasses.dataclass(frozen=True, order=True)
class Entry:
    """One file of a listing.

    `path` is below the listed URI, `size` in bytes; `etag` tells its content apart, and is '' where nobody asked for
    that. `modified` is when it was written, in seconds since 1970 by the clock of its server or disk.
    """

    path: str
    size: int
    etag: str
    modified: float = dataclasses.field(default=0.0, compare=False)


def root() -> str:
    """The store: where bases, adapters and merged models are kept.

    Raises:
        InputError: QLORA_STORE is not set.
    """
    uri = os.environ.get(STORE_VARIABLE, "")
    if not uri:
        raise InputError(f"{STORE_VARIABLE} is not set: give a folder or an s3:// prefix to keep models in")
    return uri if is_s3(uri) else str(Path(uri).absolute())


def is_s3(uri: str) -> bool:
    """Whether the URI is on S3 (all others are local paths)."""
    return uri.startswith("s3://")


def check_address(uri: str, what: str) -> None:
    """Refuses an address that would be taken for something that it is not.

    Args:
        uri: what to check: a local path, `file://` or `s3://`.
        what: whose address it is, for the message.

    Raises:
        InputError: another scheme, or a step upwards in the path.
    """
    scheme, separator, path = uri.partition("://")
    if separator and scheme not in ("s3", "file"):
        hint = f"; give it as s3://{path}" if scheme in ("minio", "s3a", "s3n") else ""
        raise InputError(f"{what} {uri}: {scheme}:// is not read here{hint}")
    if ".." in (path or uri).split("/"):
        raise InputError(f"{what} {uri}: an address may not contain ..")


def join(uri: str, *parts: str) -> str:
    """Appends path parts to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def local_path(uri: str) -> Path:
    """The path of a local URI (`file://` is understood)."""
    return Path(uri.removeprefix("file://")).absolute()


def file_uri(uri: str, entry: Entry) -> str:
    """The address of one file of a listing."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    single = entry.path == name and (is_s3(uri) or local_path(uri).is_file())
    return uri if single else join(uri, entry.path)


def read_range(uri: str, start: int, size: int | None) -> bytes:
    """`size` bytes of a file from `start` on (None: all); fewer only where the file ends.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if size == 0:
        return b""
    if is_s3(uri):
        return s3.read(uri, start, size)
    with local_files.errors(uri, "read"), local_path(uri).open("rb") as file:
        file.seek(start)
        return file.read(size)


def read_bytes(uri: str, size: int | None = None) -> bytes:
    """The content of one file, or its first `size` bytes.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    return read_range(uri, 0, size)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes one file; it appears under its name when whole.

    Raises:
        InputError: the place cannot be written.
    """
    if is_s3(uri):
        s3.write(uri, data)
    else:
        with local_files.errors(uri, "written"), local_files.replacing(local_path(uri), sync=True) as path:
            path.write_bytes(data)


def delete(uri: str) -> None:
    """Deletes one file; none there is no error.

    Raises:
        InputError: it may not be deleted.
    """
    if is_s3(uri):
        s3.delete(uri)
    else:
        with local_files.errors(uri, "deleted"):
            local_path(uri).unlink(missing_ok=True)


def check_writable(uri: str) -> None:
    """Writes, reads and deletes a small file.

    Raises:
        InputError: one of them is not possible; it says which address was tried.
    """
    probe = join(uri, f"probe-{uuid.uuid4().hex}")
    write_bytes(probe, b"written to see whether it can be, and deleted again")
    read_bytes(probe)
    delete(probe)


def files(uri: str, *, hidden: bool = False) -> Iterator[Entry]:
    """Every file at a URI, without reading any: the file itself, or all below a folder or prefix.

    Args:
        uri: a file, a folder or a prefix; where nothing is, there are no files.
        hidden: whether local files are wanted that are hidden, or in a hidden folder: they are being written.

    Raises:
        InputError: they cannot be listed.
    """
    if is_s3(uri):
        for found in s3.objects(uri):
            if not found.path.endswith("/"):
                yield Entry(found.path, found.size, f"etag:{found.etag}", found.modified)
        return
    path = local_path(uri)
    base = path.parent if path.is_file() else path
    for file in [path] if path.is_file() else path.rglob("*"):
        name = file.relative_to(base).as_posix()
        if hidden or not any(part.startswith(".") for part in name.split("/")):
            with contextlib.suppress(FileNotFoundError):  # gone since the folder was read
                stat = file.stat()
                if file.is_file():
                    yield Entry(name, stat.st_size, "", stat.st_mtime)


def listing(uri: str) -> list[Entry]:
    """What `files` gives, sorted by path, local files told apart by their sha256 and objects by their ETag."""
    found = files(uri)
    if not is_s3(uri):
        found = (
            dataclasses.replace(entry, etag=f"sha256:{sha256_file(local_path(file_uri(uri, entry)))}")
            for entry in found
        )
    return sorted(found)


def sizes(uri: str) -> dict[str, int]:
    """Size in bytes of every file at a URI, by path, without reading any."""
    return {entry.path: entry.size for entry in files(uri)}


def clock(uri: str) -> float:
    """The time by the clock that stamps the files at a URI, in seconds since 1970."""
    return s3.clock(uri) if is_s3(uri) else time.time()


def fetch(uri: str, entry: Entry, folder: Path) -> Path:
    """A local file with the content that a listing saw: the very file where it is local, else a copy in `folder`.

    Raises:
        InputError: the object changed since it was listed, or cannot be read.
    """
    if not is_s3(uri):
        return local_path(uri)
    target = folder / uuid.uuid4().hex
    s3.download(uri, entry.size, entry.etag.removeprefix("etag:"), target)
    return target


def download(uri: str, folder: Path, entries: Iterable[Entry] | None = None) -> Path:
    """A local folder with the files at `uri`: the very folder where it is local, else a copy in `folder`.

    Args:
        uri: a folder or a prefix.
        folder: where the copies go; each appears under its name when whole.
        entries: those of a listing to copy; None: all.

    Raises:
        InputError: an object changed since it was listed, or cannot be read.
    """
    if not is_s3(uri):
        return local_path(uri)
    for entry in listing(uri) if entries is None else entries:
        with local_files.replacing(folder / entry.path) as path:
            s3.download(join(uri, entry.path), entry.size, entry.etag.removeprefix("etag:"), path)
    return folder


def upload(folder: Path, uri: str) -> None:
    """Copies all files of a local folder to a URI."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload_file(file, join(uri, file.relative_to(folder).as_posix()))


def upload_file(file: Path, uri: str) -> None:
    """Copies one local file to a URI; it appears when whole.

    Raises:
        InputError: the place cannot be written.
    """
    if is_s3(uri):
        with file.open("rb") as source, s3.writing(uri) as write:
            while data := source.read(PART):
                write(data)
    else:
        with local_files.errors(uri, "written"), local_files.replacing(local_path(uri)) as path:
            shutil.copyfile(file, path)


def remove(uri: str, first: str) -> None:
    """Removes a file, or everything below a folder or prefix; none there is no error.

    Args:
        uri: what to remove.
        first: name of the file that makes work count as finished: it goes first, so that nobody finds half of the rest.

    Raises:
        InputError: something may not be removed.
    """
    there = [file.uri for file in s3.objects(uri)] if is_s3(uri) else [file_uri(uri, file) for file in files(uri)]
    for file in there:
        if file.endswith(f"/{first}"):
            delete(file)
    if is_s3(uri):
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(s3.delete, there))
    else:
        with local_files.errors(uri, "removed"), contextlib.suppress(FileNotFoundError):
            path = local_path(uri)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free_bytes(uri: str) -> int | None:
    """Room on the disk of a local URI, in bytes; None on S3."""
    if is_s3(uri):
        return None
    path = local_path(uri)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(uri: str, size: int) -> str:
    """sha256 of a file of `size` bytes, in hexadecimal; one that cannot be read is an InputError."""
    if not is_s3(uri):
        with local_files.errors(uri, "read"):
            return sha256_file(local_path(uri))
    found = hashlib.sha256()
    for start in range(0, size, PART):
        found.update(s3.read(uri, start, PART))
    return found.hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
