"""Large files read and written piece by piece, on a local disk or in an object store, with little memory."""

import collections
import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import local_files, objects, storage

Write = Callable[[memoryview], None]


class Reader:
    """Bytes of one file from any place in it; several threads may read at once."""

    def __init__(self, uri: str, size: int, etag: str = "") -> None:
        """Args: uri: a local path or the address of an object. size: bytes it has. etag: what a listing says of it."""
        self.uri, self.size = uri, size
        self._etag = etag.removeprefix("etag:") if etag.startswith("etag:") else ""
        with local_files.errors(uri, "read"):
            self._file = None if storage.is_remote(uri) else storage.local_path(uri).open("rb", buffering=0)

    def read(self, offset: int, size: int) -> bytearray:
        """The `size` bytes from `offset` on.

        Raises:
            InputError: they are not there, or cannot be read.
        """
        if self._file is None:
            buffer = bytearray(objects.read(self.uri, offset, size, self._etag) if size else b"")
            done = len(buffer)
        else:
            buffer, done, file = bytearray(size), 0, self._file.fileno()
            with local_files.errors(self.uri, "read"):
                while done < size and (got := os.preadv(file, [memoryview(buffer)[done:]], offset + done)):
                    done += got
        if done < size:
            raise InputError(f"{self.uri}: ends at byte {offset + done}, and {offset + size} were expected")
        return buffer


class Writer:
    """Takes the bytes of one file from its beginning to its end; use `writing`."""

    def __init__(self, write: Write, pool: ThreadPoolExecutor) -> None:
        """Args: write: where the bytes go. pool: one thread, which hashes and writes."""
        self._write, self._pool = write, pool
        self._size, self._sha256 = 0, hashlib.sha256()
        self._behind: collections.deque[Future[None]] = collections.deque()

    def write(self, data: Any) -> None:
        """Takes the next bytes, anything with a contiguous buffer; it must not change afterwards.

        Raises:
            InputError: an earlier piece could not be written.
        """
        self._behind.append(self._pool.submit(self._take, memoryview(data).cast("B")))
        self.wait(4)

    def _take(self, view: memoryview) -> None:
        self._size += len(view)
        self._sha256.update(view)
        self._write(view)

    def wait(self, behind: int = 0) -> None:
        """Waits until no more than so many pieces are unwritten."""
        while len(self._behind) > behind:
            self._behind.popleft().result()

    @property
    def file(self) -> dict[str, Any]:
        """`size` in bytes and `sha256` of what was written, as manifests have them."""
        return {"size": self._size, "sha256": self._sha256.hexdigest()}


@contextlib.contextmanager
def writing(uri: str) -> Iterator[Writer]:
    """A file to write from its beginning to its end, hashed and written in a thread of its own.

    It appears under its name when the block ends, and not at all if that raises.

    Args:
        uri: a local path or the address of an object.

    Raises:
        InputError: it cannot be written.
    """
    sink = objects.writing(uri) if storage.is_remote(uri) else _local(uri)
    with sink as write, ThreadPoolExecutor(1) as pool:
        writer = Writer(write, pool)
        yield writer
        writer.wait()


@contextlib.contextmanager
def _local(uri: str) -> Iterator[Write]:
    with contextlib.ExitStack() as stack:
        with local_files.errors(uri, "written"):
            path = stack.enter_context(local_files.replacing(storage.local_path(uri)))
            file = stack.enter_context(path.open("wb", buffering=0))

        def write(data: memoryview) -> None:
            with local_files.errors(uri, "written"):
                while len(data):
                    data = data[file.write(data) :]

        yield write
        with local_files.errors(uri, "written"):
            stack.close()
