"""Attempts whose files are written straight to their place, and what dead ones leave behind.

An attempt that streams cannot clean up after itself when it is killed: on S3 the parts of an upload stay, unseen and
paid for. So it renews a small file as long as it lives, and whoever works on the key next removes those that stopped.

    <key_uri>/<attempt id>/...      the files, each there when whole
    <key_uri>/<attempt id>/.alive   renewed every BEAT seconds until the manifest is there
"""

import contextlib
import dataclasses
import datetime
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage, streams

ALIVE = ".alive"
BEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without one after which an attempt is dead. An S3 client gives up on a store that is away for so long."""


class StreamedAttempt:
    """One attempt at the work of a key: `open` each file, then `commit`."""

    def __init__(self, key_uri: str) -> None:
        """Takes a folder below the key and begins to give signs of life."""
        self.uri = attempts.new_uri(key_uri)
        self.files: dict[str, dict[str, Any]] = {}
        self.committed = False
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        storage.write_bytes(storage.join(self.uri, ALIVE), b"")

    def _live(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(InputError):  # the store is away; the next may get through
                self._beat()

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[streams.Writer]:
        """A file of the attempt to write; it is there when the block ends, and not at all if it raises."""
        writer = streams.Writer(storage.join(self.uri, path))
        try:
            yield writer
            self.files[path] = writer.close()
        except BaseException:
            with contextlib.suppress(InputError):  # the store is away: the next attempt removes what it holds
                writer.abort()
            raise

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file whole."""
        with self.open(path) as writer:
            writer.write(data)

    def commit(self, info: dict[str, Any]) -> attempts.Finished:
        """Writes the manifest: from now on the work is there.

        Args:
            info: what a reader wants to know of the work, JSON.
        """
        finished = attempts.finish(self.uri, info, self.files)
        self.committed = True
        with contextlib.suppress(InputError):  # the store is away again; beside a manifest it means nothing
            self.end()
        return finished

    def end(self) -> None:
        """Ends the signs of life."""
        self._ended.set()
        self._thread.join()
        storage.delete(storage.join(self.uri, ALIVE))


@contextlib.contextmanager
def attempt(key_uri: str) -> Iterator[StreamedAttempt]:
    """An attempt whose files are removed if the work raises; what dead attempts at the key left goes before and after.

    Those that were killed less than DEAD_AFTER ago cannot be told from living ones at the start, so they are looked at
    once more at the end.
    """
    work = StreamedAttempt(key_uri)
    started = time.monotonic()
    try:
        unsure = _clear(key_uri, work.uri)
        yield work
    except BaseException:
        with contextlib.suppress(InputError):
            if not work.committed:
                work.end()
                _remove(key_uri, work.uri)
        raise
    if unsure:
        time.sleep(max(0.0, DEAD_AFTER + BEAT - (time.monotonic() - started)))
        clear(key_uri)


@dataclasses.dataclass
class _Trace:
    """What there is of an attempt without a manifest: its last sign of life (seconds of the store's clock), uploads."""

    seen: float = 0.0
    uploads: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def clear(key_uri: str) -> None:
    """Removes what dead attempts at a key left: files without a manifest, and parts of uploads."""
    if not _traces(key_uri):
        return
    probe = StreamedAttempt(key_uri)  # its sign of life says what time it is on the store's clock
    try:
        _clear(key_uri, probe.uri)
    finally:
        probe.end()
        _remove(key_uri, probe.uri)


def _clear(key_uri: str, own: str) -> list[str]:
    """Removes dead attempts; returns those that may live, by the clock that stamps the store's files."""
    traces = _traces(key_uri)
    now = traces.pop(own.rsplit("/", 1)[-1]).seen
    for name, trace in sorted(traces.items()):
        if now - trace.seen > DEAD_AFTER:
            log(f"removing what a dead attempt left: {name}")
            _remove(key_uri, storage.join(key_uri, name), trace.uploads)
            del traces[name]
    return list(traces)


def _traces(key_uri: str) -> dict[str, _Trace]:
    """All attempts at a key that have no manifest, by their folder's name."""
    return _s3_traces(key_uri) if storage.is_s3(key_uri) else _local_traces(key_uri)


def _local_traces(key_uri: str) -> dict[str, _Trace]:
    found = {}
    for folder in storage.local_path(key_uri).iterdir():
        if folder.is_dir() and not (folder / attempts.MANIFEST).exists():
            with contextlib.suppress(FileNotFoundError):  # another start removes it at the same time
                alive = folder / ALIVE
                found[folder.name] = _Trace((alive if alive.exists() else folder).stat().st_mtime)
    return found


def _s3_traces(key_uri: str) -> dict[str, _Trace]:
    client = storage.s3_client()
    bucket, key = storage.s3_location(key_uri)
    prefix = key.rstrip("/") + "/"
    found: dict[str, _Trace] = {}
    finished = set()
    with storage.s3_errors(key_uri):
        # Uploads first: one that is completed in between shows up as an object, and none is missed.
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix):
            for upload in page.get("Uploads", []):
                trace = found.setdefault(upload["Key"].removeprefix(prefix).split("/")[0], _Trace())
                trace.uploads.append((upload["Key"], upload["UploadId"]))
                trace.seen = max(trace.seen, _seconds(upload["Initiated"]))
        for objects in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in objects.get("Contents", []):
                name, _, path = item["Key"].removeprefix(prefix).partition("/")
                trace = found.setdefault(name, _Trace())
                trace.seen = max(trace.seen, _seconds(item["LastModified"]))
                if path == attempts.MANIFEST:
                    finished.add(name)
    return {name: trace for name, trace in found.items() if name not in finished}


def _seconds(moment: datetime.datetime) -> float:
    return moment.timestamp()


def _remove(key_uri: str, uri: str, uploads: list[tuple[str, str]] | None = None) -> None:
    """Removes an attempt's files, and aborts its uploads."""
    if not storage.is_s3(key_uri):
        shutil.rmtree(storage.local_path(uri), ignore_errors=True)
        return
    from botocore.exceptions import ClientError

    bucket, _ = storage.s3_location(uri)
    for key, upload in uploads or []:
        with storage.s3_errors(uri):
            try:
                storage.s3_client().abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)
            except ClientError as error:
                if error.response["Error"]["Code"] != "NoSuchUpload":  # another start was quicker
                    raise
    for entry in storage.listing(uri):
        storage.delete(storage.join(uri, entry.path))
