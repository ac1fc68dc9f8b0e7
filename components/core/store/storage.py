"""Files by URI: a local folder or a prefix in an object store, the same few verbs for all."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import addresses, local_files, objects
from qlora_pipelines.components.core.store.prefetch import prefetch

STORE_VARIABLE = "QLORA_STORE"
PARALLEL = 8
"""Files, or parts of one, in work at a time."""
PART = objects.PART


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


is_remote = addresses.is_remote
check_address = addresses.check
join = addresses.join
local_path = addresses.local_path


def root() -> str:
    """The store: where bases, adapters and merged models are kept.

    Raises:
        InputError: QLORA_STORE is not set.
    """
    uri = os.environ.get(STORE_VARIABLE, "")
    if not uri:
        raise InputError(f"{STORE_VARIABLE} is not set: give a folder or {addresses.KINDS} to keep models in")
    return uri if is_remote(uri) else str(Path(uri).absolute())


def file_uri(uri: str, entry: Entry) -> str:
    """The address of one file of a listing."""
    name = uri.rstrip("/").rsplit("/", 1)[-1]
    single = entry.path == name and (is_remote(uri) or local_path(uri).is_file())
    return uri if single else join(uri, entry.path)


def read_range(uri: str, start: int, size: int | None) -> bytes:
    """`size` bytes of a file from `start` on (None: all); fewer only where the file ends.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if size == 0:
        return b""
    if is_remote(uri):
        return objects.read(uri, start, size)
    with local_files.errors(uri, "read"), local_path(uri).open("rb") as file:
        file.seek(start)
        return file.read(size)


def stream(uri: str, start: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The `size` bytes of a file from `start` on as they come, each piece with its place; all of them, or an error.

    Raises:
        InputError: they are not there, or cannot be read.
    """
    if is_remote(uri):
        yield from objects.stream(uri, start, size) if size else ()
    else:
        data = read_range(uri, start, size)
        if len(data) != size:
            raise InputError(f"{uri} is not whole: it ends before byte {start + size:,}")
        yield start, data


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
    if is_remote(uri):
        objects.write(uri, data)
    else:
        with local_files.errors(uri, "written"), local_files.replacing(local_path(uri), sync=True) as path:
            path.write_bytes(data)


def delete(uri: str) -> None:
    """Deletes one file; none there is no error.

    Raises:
        InputError: it may not be deleted.
    """
    if is_remote(uri):
        objects.delete(uri)
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
        hidden: whether files are wanted that are hidden, or in a hidden folder: on a disk they are being written.

    Raises:
        InputError: they cannot be listed, or one of them has a name that cannot be a file's everywhere.
    """
    if is_remote(uri):
        found = (Entry(each.path, each.size, f"etag:{each.etag}", each.modified) for each in objects.objects(uri))
    else:
        tree = local_files.tree(local_path(uri))
        found = (Entry(name, status.st_size, "", status.st_mtime) for name, status in tree)
    for entry in found:
        try:
            local_files.check_name(entry.path)
        except InputError as error:
            raise InputError(f"{uri}: {error}") from None
        if hidden or not is_hidden(entry.path):
            yield entry


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden: its name begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def listing(uri: str, *, hidden: bool = False) -> list[Entry]:
    """What `files` gives, sorted by path, local files told apart by their sha256 and objects by their ETag."""
    found = files(uri, hidden=hidden)
    if not is_remote(uri):
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
    return objects.clock(uri) if is_remote(uri) else time.time()


def upload(folder: Path, uri: str) -> None:
    """Copies all files of a local folder to a URI."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload_file(file, join(uri, file.relative_to(folder).as_posix()))


def upload_file(file: Path, uri: str) -> None:
    """Copies one local file to a URI; it appears when whole.

    Raises:
        InputError: the place cannot be written.
    """
    if is_remote(uri):
        with file.open("rb") as source, objects.writing(uri) as write:
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
    if is_remote(uri):
        there = [each.uri for each in objects.objects(uri)]
    else:
        there = [file_uri(uri, file) for file in files(uri)]
    for file in there:
        if file.endswith(f"/{first}"):
            delete(file)
    if is_remote(uri):
        objects.delete_all(there)
    else:
        with local_files.errors(uri, "removed"), contextlib.suppress(FileNotFoundError):
            path = local_path(uri)
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def free_bytes(uri: str) -> int | None:
    """Room on the disk of a local URI, in bytes; None in an object store."""
    if is_remote(uri):
        return None
    path = local_path(uri)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def sha256(uri: str, size: int) -> str:
    """sha256 of a file of `size` bytes, in hexadecimal; one that cannot be read is an InputError."""
    if not is_remote(uri):
        return sha256_file(local_path(uri))
    found = hashlib.sha256()
    with contextlib.closing(prefetch(lambda at: objects.read(uri, at, PART), range(0, size, PART))) as parts:
        for _, data in parts:
            found.update(data)
    return found.hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a local file, in hexadecimal; one that cannot be read is an InputError."""
    with local_files.errors(str(path), "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
