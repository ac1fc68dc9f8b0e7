"""Finished work found by its key, and attempts that never meet.

A pod thought dead may still write. So each attempt at `key_uri` writes under a folder of its own, and its
`manifest.json`, written last, names every file with size and sha256. Readers follow manifests only: what has
none is not there.

    <key_uri>/<attempt id>/...            the files, each there when whole
    <key_uri>/<attempt id>/.alive         renewed every BEAT seconds until the manifest is there
    <key_uri>/<attempt id>/manifest.json  written last

When an attempt is killed it cannot clean up: in an object store the parts of an upload stay, unseen and paid for. So
whoever works on the key next removes attempts that show no sign of life any longer.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import local_files, s3, storage, streams

MANIFEST = "manifest.json"
ALIVE = ".alive"
BEAT = 10.0
"""Seconds between two signs of life."""
DEAD_AFTER = 60.0
"""Seconds without one after which an attempt is dead. connections.py gives up on a store that is away for so long."""


@dataclasses.dataclass(frozen=True)
class Finished:
    """Whole work: the URI of its folder, and what its manifest says about it."""

    uri: str
    info: dict[str, Any]
    files: dict[str, dict[str, Any]]


def find(key_uri: str, **wanted: Any) -> Finished | None:
    """The finished work under a key (the earliest attempt where there are several), or None.

    Work that has lost files since is named in the log and passed over, so that it is done again.

    Args:
        key_uri: where the key's attempts are.
        **wanted: what the work's info must say; other work is passed over.
    """
    for name in sorted(storage.sizes(key_uri)):
        attempt, _, path = name.partition("/")
        if path == MANIFEST:
            found = read(storage.join(key_uri, attempt))
            if not wanted.items() <= found.info.items():
                continue
            if gone := missing(found.uri, found.files):
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
        found = json.loads(storage.read_bytes(path))
        return Finished(uri=uri, info=dict(found["info"]), files=dict(found["files"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; remove its folder, and its work is done again") from None


def missing(uri: str, files: dict[str, dict[str, Any]]) -> list[str]:
    """Which of the files that a manifest lists are gone from its folder, or not of the size that it says."""
    present = storage.sizes(uri)
    return [name for name, file in files.items() if present.get(name) != file["size"]]


def altered(uri: str, files: dict[str, dict[str, Any]]) -> list[str]:
    """Which of the files that a manifest lists have another content; all are read, several at a time."""

    def differs(name: str) -> bool:
        return storage.sha256(storage.join(uri, name), files[name]["size"]) != str(files[name]["sha256"])

    with ThreadPoolExecutor(storage.PARALLEL) as pool:
        return [name for name, found in zip(files, pool.map(differs, files), strict=True) if found]


def check_files(uri: str, files: dict[str, dict[str, Any]], what: str, remedy: str) -> None:
    """Reads every file of a manifest again and compares size and sha256.

    Args:
        uri: the folder that they are in.
        files: size and sha256 by path.
        what: whose files they are, for the message.
        remedy: what to do where one differs, for the message.

    Raises:
        InputError: one is gone, not whole, or another; it is named.
    """
    for name in missing(uri, files):
        raise InputError(f"{what}: {name} is gone or not whole; {remedy}")
    for name in altered(uri, files):
        raise InputError(f"{what}: {name} is not the file that its manifest lists; {remedy}")


def manifest(work: Finished) -> bytes:
    """The content of the manifest of finished work."""
    return json.dumps({"format": 1, "info": work.info, "files": work.files}, indent=1).encode()


def finish(uri: str, info: dict[str, Any], files: dict[str, dict[str, Any]]) -> Finished:
    """Writes the manifest of an attempt whose files are all there: from now on the work is finished.

    Args:
        uri: the attempt's folder.
        info: what a reader wants to know of the work, JSON.
        files: `size` in bytes and `sha256` of every file, by its path in the folder.
    """
    work = Finished(uri, info, files)
    storage.write_bytes(storage.join(uri, MANIFEST), manifest(work))
    return work


class Attempt:
    """One attempt at the work of a key: `open` each file, or fill `folder`; then `commit`."""

    def __init__(self, key_uri: str) -> None:
        """Takes a folder below the key and begins to give signs of life."""
        now = time.strftime("%Y%m%dT%H%M%S", time.gmtime())  # so that later attempts sort behind
        self.uri = storage.join(key_uri, f"{now}-{uuid.uuid4().hex[:8]}")
        self.files: dict[str, dict[str, Any]] = {}
        self.committed = False
        self._scratch = contextlib.ExitStack()
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

    @functools.cached_property
    def folder(self) -> Path:
        """A local folder for files of the work: the final one where the store is local, else a temporary one."""
        if storage.is_remote(self.uri):
            return Path(self._scratch.enter_context(tempfile.TemporaryDirectory()))
        return storage.local_path(self.uri)

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[streams.Writer]:
        """A file of the attempt to write; it is there when the block ends, and not at all if it raises."""
        with streams.writing(storage.join(self.uri, path)) as writer:
            yield writer
        self.files[path] = writer.file

    def write(self, path: str, data: bytes) -> None:
        """Writes a small file whole."""
        with self.open(path) as writer:
            writer.write(data)

    def commit(self, info: dict[str, Any]) -> Finished:
        """Uploads what is in `folder`, then writes the manifest: from now on the work is there.

        Args:
            info: what a reader wants to know of the work, JSON.
        """
        for entry in sorted(storage.files(str(self.folder))):
            if entry.path not in self.files:
                self._add(entry)
        finished = finish(self.uri, info, self.files)
        self.committed = True
        with contextlib.suppress(InputError):  # the store is away again; next to a manifest it means nothing
            self.end()
        return finished

    def _add(self, entry: storage.Entry) -> None:
        path = self.folder / entry.path
        if storage.is_remote(self.uri):
            with path.open("rb") as source, self.open(entry.path) as writer:
                while data := source.read(storage.PART):
                    writer.write(data)
        else:
            local_files.fsync(path)
            self.files[entry.path] = {"size": entry.size, "sha256": storage.sha256_file(path)}

    def end(self) -> None:
        """Ends the signs of life, and removes the files of an attempt that was not committed."""
        self._ended.set()
        self._thread.join()
        self._scratch.close()
        if self.committed:
            storage.delete(storage.join(self.uri, ALIVE))
        else:
            _remove(self.uri)


@contextlib.contextmanager
def attempt(key_uri: str, *, wait: bool = False) -> Iterator[Attempt]:
    """An attempt whose files are removed if it is not committed; before it, dead attempts at the key are.

    Args:
        key_uri: where the key's attempts are.
        wait: whether those that were killed less than DEAD_AFTER ago go too. They cannot be told from living ones at
            the start, so they are looked at once more at the end.
    """
    work = Attempt(key_uri)
    started = time.monotonic()
    try:
        unsure = _remove_dead(key_uri, work.uri)
        yield work
    finally:
        if not work.committed:
            with contextlib.suppress(InputError):  # the store is away: the next attempt removes what is left
                work.end()
    if wait and unsure:
        time.sleep(max(0.0, DEAD_AFTER + BEAT - (time.monotonic() - started)))
        clear(key_uri)


def clear(key_uri: str) -> None:
    """Removes what dead attempts at a key left: files without a manifest, and parts of uploads."""
    if _unfinished(key_uri):
        with attempt(key_uri):
            pass  # it is not committed: it gives the time by the store's clock, and goes again


@dataclasses.dataclass
class _Unfinished:
    """What there is of an attempt without a manifest: its last sign of life (seconds of the store's clock), uploads."""

    seen: float = 0.0
    uploads: list[s3.PendingUpload] = dataclasses.field(default_factory=list)


def _unfinished(key_uri: str) -> dict[str, _Unfinished]:
    """All attempts at a key that have no manifest, by their folder's name."""
    found: collections.defaultdict[str, _Unfinished] = collections.defaultdict(_Unfinished)
    finished = set()
    # Uploads first: one that is completed in between shows up as an object, and none is missed.
    for upload in s3.pending_uploads(key_uri) if storage.is_remote(key_uri) else ():
        trace = found[upload.path.partition("/")[0]]
        trace.uploads.append(upload)
        trace.seen = max(trace.seen, upload.started)
    for entry in storage.files(key_uri, hidden=True):
        name, inside, path = entry.path.partition("/")
        if inside:
            found[name].seen = max(found[name].seen, entry.modified)
        if path == MANIFEST:
            finished.add(name)
    return {name: trace for name, trace in found.items() if name not in finished}


def _remove_dead(key_uri: str, own: str) -> list[str]:
    """Removes dead attempts; returns those that may live, by the clock that stamped the attempt `own`."""
    traces = _unfinished(key_uri)
    now = traces.pop(own.rsplit("/", 1)[-1]).seen
    for name, trace in sorted(traces.items()):
        if now - trace.seen > DEAD_AFTER:
            log(f"removing what a dead attempt left: {name}")
            for upload in trace.uploads:
                s3.abort(upload.uri, upload.id)
            _remove(storage.join(key_uri, name))
            del traces[name]
    return list(traces)


def _remove(uri: str) -> None:
    if storage.is_remote(uri):
        storage.remove(uri, first=MANIFEST)
    else:
        shutil.rmtree(storage.local_path(uri), ignore_errors=True)  # another start may do the same
