"""Large files read and written piece by piece, on a local disk or on S3, with little memory and no disk in between."""

import collections
import concurrent.futures
import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import storage

PART = 16 << 20
"""Bytes of a part of a multipart upload: S3 takes 10,000 parts, so files of up to 156 GiB."""
UPLOADS = 4
"""Parts of one file on their way at a time."""
READ_ATTEMPTS = 5
Item = TypeVar("Item")
Result = TypeVar("Result")


class Reader:
    """Bytes of one file from any place in it; several threads may read at once."""

    def __init__(self, uri: str, size: int) -> None:
        """Args: uri: a local path or `s3://` object. size: bytes it has."""
        self.uri, self.size = uri, size
        self._file = None if storage.is_s3(uri) else _open(uri)

    def read(self, offset: int, size: int) -> bytearray:
        """The `size` bytes from `offset` on.

        Raises:
            InputError: they are not there.
            TransientError: they cannot be read.
        """
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        if not size:
            return buffer
        for left in reversed(range(READ_ATTEMPTS)):
            try:
                with storage.s3_errors(self.uri):
                    done += self._fill(view[done:], offset + done)
            except TransientError:
                # A connection that broke off in the middle; the client itself tries again only until an answer begins.
                if not left or self._file is not None:
                    raise
                time.sleep(2.0 ** (READ_ATTEMPTS - left) / 10)
                continue
            if done == size:
                return buffer
        raise InputError(f"{self.uri}: ends at byte {offset + done}, and {offset + size} were expected")

    def _fill(self, view: memoryview, offset: int) -> int:
        if self._file is not None:
            done = 0
            with _disk_errors(self.uri, "read"):
                while done < len(view) and (got := os.preadv(self._file, [view[done:]], offset + done)):
                    done += got
            return done
        bucket, key = storage.s3_location(self.uri)
        wanted = f"bytes={offset}-{offset + len(view) - 1}"
        body = storage.s3_client().get_object(Bucket=bucket, Key=key, Range=wanted)["Body"]
        data = body.read()
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)


def _open(uri: str) -> int:
    with _disk_errors(uri, "read"):
        return os.open(storage.local_path(uri), os.O_RDONLY)


@contextlib.contextmanager
def _disk_errors(uri: str, verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TransientError(f"{uri}: cannot be {verb}: {error.strerror}") from None


def ahead(work: Callable[[Item], Result], items: Iterable[Item], depth: int = 4) -> Generator[tuple[Item, Result]]:
    """Each item with its result, in order, while the next `depth` are worked on in threads."""
    with concurrent.futures.ThreadPoolExecutor(depth) as pool:
        waiting: collections.deque[tuple[Item, concurrent.futures.Future[Result]]] = collections.deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > depth:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


class Sink(Protocol):
    """Where a writer's bytes go."""

    def write(self, data: memoryview) -> None:
        """Takes bytes."""

    def close(self) -> None:
        """The file appears under its name."""

    def abort(self) -> None:
        """Nothing of it stays."""


class Writer:
    """One file written from its beginning to its end; it appears under its name when closed.

    Hashing and writing go on in a thread of their own, at most four pieces behind.
    """

    def __init__(self, uri: str) -> None:
        """Args: uri: a local path or `s3://` object."""
        self.uri, self.size = uri, 0
        self._sha256 = hashlib.sha256()
        self._sink: Sink = _Upload(uri) if storage.is_s3(uri) else _File(uri)
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._behind: collections.deque[concurrent.futures.Future[None]] = collections.deque()

    def write(self, data: Any) -> None:
        """Takes the next bytes, anything with a contiguous buffer; it must not change afterwards.

        Raises:
            TransientError: an earlier piece could not be written.
        """
        view = memoryview(data).cast("B")
        self.size += len(view)
        self._behind.append(self._pool.submit(self._take, view))
        while len(self._behind) > 4:
            self._behind.popleft().result()

    def _take(self, view: memoryview) -> None:
        self._sha256.update(view)
        self._sink.write(view)

    def close(self) -> dict[str, Any]:
        """Finishes the file.

        Returns:
            `size` in bytes and `sha256`, as manifests have them.

        Raises:
            TransientError: it could not be written.
        """
        while self._behind:
            self._behind.popleft().result()
        self._sink.close()
        self._pool.shutdown()
        return {"size": self.size, "sha256": self._sha256.hexdigest()}

    def abort(self) -> None:
        """Gives up; nothing of the file stays."""
        self._pool.shutdown(cancel_futures=True)
        self._sink.abort()


class _File:
    def __init__(self, uri: str) -> None:
        self._uri, self._path = uri, storage.local_path(uri)
        self._aside = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        with _disk_errors(uri, "written"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._aside.open("wb", buffering=0)

    def write(self, data: memoryview) -> None:
        with _disk_errors(self._uri, "written"):
            while len(data):
                data = data[self._file.write(data) :]

    def close(self) -> None:
        with _disk_errors(self._uri, "written"):
            self._file.close()
            self._aside.replace(self._path)

    def abort(self) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)


class _Upload:
    """A multipart upload; a file smaller than a part is put whole."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._bucket, self._key = storage.s3_location(uri)
        self._id = ""
        self._part = bytearray()
        self._parts: list[concurrent.futures.Future[Any]] = []
        self._pool = concurrent.futures.ThreadPoolExecutor(UPLOADS)

    def write(self, data: memoryview) -> None:
        while len(data):
            room = PART - len(self._part)
            self._part += data[:room]
            data = data[room:]
            if len(self._part) == PART:
                self._send()

    def _send(self) -> None:
        if not self._id:
            with storage.s3_errors(self._uri):
                made = storage.s3_client().create_multipart_upload(Bucket=self._bucket, Key=self._key)
            self._id = made["UploadId"]
        if len(self._parts) >= UPLOADS:
            self._parts[-UPLOADS].result()  # so many are on their way at most
        self._parts.append(self._pool.submit(self._send_part, len(self._parts) + 1, bytes(self._part)))
        self._part.clear()

    def _send_part(self, number: int, data: bytes) -> Any:
        with storage.s3_errors(self._uri):
            sent = storage.s3_client().upload_part(
                Bucket=self._bucket, Key=self._key, UploadId=self._id, PartNumber=number, Body=data
            )
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def close(self) -> None:
        if not self._id:
            storage.write_bytes(self._uri, bytes(self._part))
        else:
            if self._part:
                self._send()
            parts = [part.result() for part in self._parts]
            with storage.s3_errors(self._uri):
                storage.s3_client().complete_multipart_upload(
                    Bucket=self._bucket, Key=self._key, UploadId=self._id, MultipartUpload={"Parts": parts}
                )
        self._pool.shutdown()

    def abort(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self._id:
            with storage.s3_errors(self._uri):
                storage.s3_client().abort_multipart_upload(Bucket=self._bucket, Key=self._key, UploadId=self._id)


def free_bytes(uri: str) -> int | None:
    """Room on the disk of a local URI, in bytes; None on S3."""
    if storage.is_s3(uri):
        return None
    path = storage.local_path(uri)
    while not path.exists():
        path = path.parent
    found = os.statvfs(Path(path))
    return found.f_bavail * found.f_frsize
