"""The listing: which files a run's data consists of, fixed by plan_run and read by prepare_dataset.

It is at `STORE/listings/<data_digest>.json`, so that later steps get an address whose content cannot change.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import addresses, copies, keys, storage, streams
from qlora_pipelines.components.core.store.storage import Entry

Listing = dict[str, dict[str, Any]]
"""`{"train": {"uri": ..., "files": [[path, size, etag], ...]}, "eval": {...}}`; `eval` may be missing."""

KINDS = (".jsonl", ".json", ".csv", ".parquet")
COMPRESSIONS = ("", ".gz", ".zst")
SUFFIXES = tuple(kind + compression for kind in KINDS for compression in COMPRESSIONS)
"""Endings of the files that are read."""


@dataclasses.dataclass(frozen=True)
class DataFile:
    """One listed file; `uri` is its name in messages."""

    uri: str
    source: str
    entry: Entry

    def fetch(self, folder: Path) -> Path:
        """A local file of the listed content; a copy is put into `folder`.

        Raises:
            InputError: it cannot be read, or its content has changed.
        """
        if self.source.startswith(hub.PREFIX):
            return hub.fetch(self.source, self.entry.path, self.entry.etag, folder)
        return copies.fetch(self.uri, self.entry, folder)

    def open(self) -> BinaryIO:
        """The file in place, seekable; of a remote one only what is read is transferred.

        Raises:
            InputError: it cannot be read; reading may raise this too.
        """
        if self.source.startswith(hub.PREFIX):
            return _buffered(functools.partial(hub.read, self.source, self.entry.path), self.entry.size)
        if storage.is_remote(self.uri):
            if self.entry.size <= storage.PART:  # whole, it can be compared with its checksum
                return io.BytesIO(copies.read(self.uri, self.entry))
            return _buffered(streams.Reader(self.uri, self.entry.size, self.entry.etag).read, self.entry.size)
        try:
            return storage.local_path(self.uri).open("rb")
        except OSError as error:
            raise InputError(f"data {self.uri}: {error.strerror}") from None


class _Ranges(io.RawIOBase):
    """A remote file of which any range can be read."""

    def __init__(self, read: Callable[[int, int], bytes | bytearray], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        part = self._read(self._at, max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)


def _buffered(read: Callable[[int, int], bytes | bytearray], size: int) -> BinaryIO:
    return io.BufferedReader(_Ranges(read, size), 1 << 18)


def make(dataset_uri: str, eval_dataset_uri: str = "") -> Listing:
    """Lists the data as it is there now.

    Raises:
        InputError: nothing is there, or a file is empty or of a kind that is not read.
    """
    sources = {"train": dataset_uri} | ({"eval": eval_dataset_uri} if eval_dataset_uri else {})
    return {side: _source(uri) for side, uri in sources.items()}


def _source(uri: str) -> dict[str, Any]:
    source = hub.parse(uri)
    if source:
        absolute, entries = hub.listing(source, SUFFIXES)
    else:
        absolute = uri if storage.is_remote(uri) else str(storage.local_path(uri))
        entries = storage.listing(uri, hidden=True)
    if not entries:
        accepted = f"a file, a folder, {addresses.KINDS} or a Hugging Face data set"
        raise InputError(f"data {uri}: nothing there; give {accepted}")
    for entry in entries:
        name = entry.path if source else storage.file_uri(uri, entry)
        if storage.is_hidden(entry.path) and not source:
            raise InputError(f"data {name}: hidden files are not read; remove it, or rename it if it is data")
        if not entry.path.lower().endswith(SUFFIXES):
            raise InputError(f"data {name}: this kind is not read; give {', '.join(KINDS)}, plain or .gz or .zst")
        if entry.size == 0:
            raise InputError(f"data {name}: the file is empty")
    return {"uri": absolute, "files": [[entry.path, entry.size, entry.etag] for entry in entries]}


def data_digest(listing: Listing) -> str:
    """Names the data by content, wherever it is."""
    return keys.digest({side: source["files"] for side, source in listing.items()})


def save(listing: Listing) -> str:
    """Writes the listing into the store and returns its URI."""
    uri = storage.join(storage.root(), "listings", f"{data_digest(listing)}.json")
    storage.write_bytes(uri, json.dumps(listing, indent=1).encode())
    return uri


def read(uri: str) -> Listing:
    """What `save` wrote.

    Raises:
        InputError: there is no listing.
    """
    try:
        listing: Listing = json.loads(storage.read_bytes(uri))
        for source in (listing["train"], *listing.values()):
            source["uri"], [Entry(*file) for file in source["files"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{uri} is no listing of data; give the listing_uri that plan_run printed") from None
    return listing


def files(listing: Listing) -> dict[str, list[DataFile]]:
    """The files to read, by side (`train`, `eval`), after checking that they are still the listed ones.

    Raises:
        InputError: a file changed or is gone since plan_run listed it.
    """
    return {side: _files(source["uri"], [Entry(*file) for file in source["files"]]) for side, source in listing.items()}


def load(uri: str) -> dict[str, list[DataFile]]:
    """The files of a listing in the store; see `read` and `files`."""
    return files(read(uri))


def first_file(source: dict[str, Any]) -> DataFile:
    """The first file of one side of a listing."""
    entry = Entry(*source["files"][0])
    return DataFile(storage.file_uri(source["uri"], entry), source["uri"], entry)


def _files(uri: str, entries: list[Entry]) -> list[DataFile]:
    if uri.startswith(hub.PREFIX):
        # At a commit nothing changes; the content is checked after the download.
        root = uri[: uri.index("@")]
        return [DataFile(f"{root}/{entry.path}", uri, entry) for entry in entries]
    now = {entry.path: entry for entry in storage.listing(uri)}
    for entry in entries:
        if now.get(entry.path) != entry:
            raise InputError(f"data {uri}: {entry.path} changed since the run was planned; start a new run")
    return [DataFile(storage.file_uri(uri, entry), uri, entry) for entry in entries]
