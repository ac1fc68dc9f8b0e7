"""The listing: which files a run's data consists of, fixed by plan_run and read by prepare_dataset.

It is at `STORE/listings/<data_digest>.json`, so that later steps get an address whose content cannot change.
"""

import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from qlora_pipelines.components.core.data import hub
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import addresses, copies, keys, storage, streams
from qlora_pipelines.components.core.store.storage import Entry

Listing = dict[str, dict[str, Any]]
"""`{"train": {"uri": ..., "files": [[path, size, etag], ...]}, "eval": {...}}`; `eval` may be missing."""

TABLES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
ARCHIVE = ".tar"
DOCUMENTS = (".txt", ".md")
"""Plain text, each file a row; they are not read next to files of rows, where they are a README or a licence."""
KINDS = (*TABLES, ARCHIVE, *DOCUMENTS)
COMPRESSIONS = ("", ".gz", ".zst", ".bz2", ".xz")
ACCEPTED = f"{', '.join(KINDS)}, plain or {', '.join(COMPRESSIONS[1:-1])} or {COMPRESSIONS[-1]}"


def kind_of(name: str) -> str:
    """A file's kind by its ending, one of `KINDS`; '' where it is none that is read."""
    plain = name.lower()
    for compression in COMPRESSIONS[1:]:
        if plain.endswith(compression):
            plain = plain.removesuffix(compression)
            break
    return next((kind for kind in KINDS if plain.endswith(kind)), "")


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
        absolute, entries = hub.listing(source, _rows_first)
    else:
        absolute = uri if storage.is_remote(uri) else str(storage.local_path(uri))
        entries = _without_descriptions(uri, storage.listing(uri, hidden=True))
    if not entries:
        accepted = f"a file, a folder, {addresses.KINDS} or a Hugging Face data set"
        raise InputError(f"data {uri}: nothing there; give {accepted}")
    documents = all(kind_of(entry.path) in DOCUMENTS for entry in entries)
    for entry in entries:
        name = entry.path if source else storage.file_uri(uri, entry)
        if storage.is_hidden(entry.path) and not source:
            raise InputError(f"data {name}: hidden files are not read; remove it, or rename it if it is data")
        if not (kind := kind_of(entry.path)):
            raise InputError(f"data {name}: this kind is not read; give {ACCEPTED}")
        if kind in DOCUMENTS and not documents:
            raise InputError(
                f"data {name}: this kind is not read next to files of rows; documents need a folder of their own"
            )
        if entry.size == 0:
            raise InputError(f"data {name}: the file is empty")
    return {"uri": absolute, "files": [[entry.path, entry.size, entry.etag] for entry in entries]}


def _rows_first(entries: list[Entry]) -> list[Entry]:
    """Of the files of a data set on the hub those that hold its rows; its card and licence are no documents."""
    for kinds in (TABLES, (ARCHIVE,)):
        if found := [entry for entry in entries if kind_of(entry.path) in kinds]:
            return found
    return [
        entry for entry in entries if kind_of(entry.path) and not re.match(r"(README|LICEN[CS]E)\b", entry.path, re.I)
    ]


def _without_descriptions(uri: str, entries: list[Entry]) -> list[Entry]:
    """The files without what `datasets` writes next to its `.arrow` files.

    Raises:
        InputError: it is a `DatasetDict`, of several splits.
    """
    if not any(kind_of(entry.path) == ".arrow" for entry in entries):
        return entries
    if any(entry.path == "dataset_dict.json" for entry in entries):
        splits = sorted({entry.path.partition("/")[0] for entry in entries if "/" in entry.path})
        raise InputError(f"data {uri}: it is several splits ({', '.join(splits)}); give the folder of one")
    return [entry for entry in entries if entry.path.rpartition("/")[2] not in hub.DESCRIPTIONS]


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
    return first_files(source, 1)[0]


def first_files(source: dict[str, Any], number: int) -> list[DataFile]:
    """The first files of one side of a listing."""
    entries = [Entry(*file) for file in source["files"][:number]]
    return [DataFile(storage.file_uri(source["uri"], entry), source["uri"], entry) for entry in entries]


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
