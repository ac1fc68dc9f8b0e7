"""The listing: which files a run's data consists of, fixed by plan_run and read by prepare_dataset.

It lies at `STORE/listings/<data_digest>.json`, so that later steps get an address that cannot come to mean other data.
"""

import json
from typing import Any

from components.core import keys, storage
from components.core.errors import InputError
from components.core.storage import Entry

Listing = dict[str, dict[str, Any]]
"""`{"train": {"uri": ..., "files": [[path, size, etag], ...]}, "eval": {...}}`; `eval` may be missing."""


def make(dataset_uri: str, eval_dataset_uri: str = "") -> Listing:
    """Lists the data as it lies there now.

    Raises:
        InputError: nothing is there, or a file is empty.
    """
    sources = {"train": dataset_uri} | ({"eval": eval_dataset_uri} if eval_dataset_uri else {})
    return {side: _source(uri) for side, uri in sources.items()}


def _source(uri: str) -> dict[str, Any]:
    entries = storage.listing(uri)
    if not entries:
        raise InputError(f"data {uri}: nothing there; give a file, a folder or an s3:// prefix")
    for entry in entries:
        if entry.size == 0:
            raise InputError(f"data {storage.file_uri(uri, entry)}: the file is empty")
    absolute = uri if storage.is_s3(uri) else str(storage.local_path(uri))
    return {"uri": absolute, "files": [[entry.path, entry.size, entry.etag] for entry in entries]}


def data_digest(listing: Listing) -> str:
    """Names the data by content: where it lies plays no part."""
    return keys.digest({side: source["files"] for side, source in listing.items()})


def save(listing: Listing) -> str:
    """Writes the listing into the store and returns its URI."""
    uri = storage.join(storage.root(), "listings", f"{data_digest(listing)}.json")
    storage.write_bytes(uri, json.dumps(listing, indent=1).encode())
    return uri


def load(uri: str) -> dict[str, list[str]]:
    """The files to read, by side (`train`, `eval`), after checking that they are still the listed ones.

    Raises:
        InputError: a file changed or is gone since plan_run listed it.
    """
    listing: Listing = json.loads(storage.read_bytes(uri))
    files: dict[str, list[str]] = {}
    for side, source in listing.items():
        now = {entry.path: entry for entry in storage.listing(source["uri"])}
        files[side] = []
        for path, size, etag in source["files"]:
            if now.get(path) != Entry(path, size, etag):
                raise InputError(f"data {source['uri']}: {path} changed since the run was planned; start a new run")
            files[side].append(storage.file_uri(source["uri"], now[path]))
    return files
