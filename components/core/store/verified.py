"""Objects read in pieces, every byte compared.

A checksum of a whole object says nothing of a piece of it. So an object is read twice: first whole, to compare it with
what is known of it and to note the sha256 of each block; then, in any order, by whole blocks that must have theirs.
"""

import collections
import contextlib
import functools
import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.store import copies, objects, storage
from qlora_pipelines.components.core.store.prefetch import prefetch

BLOCK = 1 << 20
"""Bytes that have a sha256 of their own. Those of 100 GB take 3 MB of memory."""
_PART = 4 * BLOCK
"""Bytes of a request of the first read. With objects.PART it would take more memory than all that comes after it."""


class Blocks:
    """The blocks that were read last, of all readers that share them; each is fetched once, whoever asks meanwhile."""

    def __init__(self, kept: int = 8) -> None:
        """Args: kept: how many; one more than pieces are in work at a time, as two pieces can share a block."""
        self._kept = kept
        self._lock = threading.Lock()
        self._found: collections.OrderedDict[tuple[str, int], Future[bytes]] = collections.OrderedDict()

    def get(self, uri: str, start: int, fetch: Callable[[], bytes]) -> bytes:
        """The block of an object from `start` on; `fetch` reads it if it is not here."""
        with self._lock:
            missing = (uri, start) not in self._found
            block = self._found.setdefault((uri, start), Future())
            self._found.move_to_end((uri, start))
            if len(self._found) > self._kept:
                self._found.popitem(last=False)
        if missing:
            try:
                block.set_result(fetch())
            except BaseException as error:  # for those who wait for it, too
                block.set_exception(error)
        return block.result()


class Reader:
    """Bytes of one object from any place in it, as they were at its first read; several threads may read at once."""

    def __init__(self, uri: str, entry: storage.Entry, blocks: Blocks) -> None:
        """Reads the object once.

        Args:
            uri: its address.
            entry: what a listing or a manifest says of it.
            blocks: where blocks are kept.

        Raises:
            InputError: it cannot be read, or its bytes are others than is known of it.
        """
        self.uri, self.size = uri, entry.size
        self._blocks = blocks
        self._etag = copies.etag(entry)
        self._digests: list[bytes] = []
        copies.verify(uri, entry, self._read_whole)

    def _read_whole(self, digest: Any) -> None:
        def part(start: int) -> tuple[bytes, list[bytes]]:
            data = objects.read(self.uri, start, min(_PART, self.size - start), self._etag)
            view = memoryview(data)
            return data, [hashlib.sha256(view[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]

        self._digests = []
        starts = range(0, self.size, _PART)
        with contextlib.closing(prefetch(part, starts, objects.PARALLEL)) as parts:
            for _, (data, digests) in parts:
                digest.update(data)
                self._digests += digests

    def read(self, offset: int, size: int) -> bytearray:
        """The `size` bytes from `offset` on.

        Raises:
            InputError: they are not there, cannot be read, or are not those of the first read.
        """
        end = offset + size
        if end > self.size:
            raise InputError(f"{self.uri}: ends at byte {self.size}, and {end} were expected")
        found = bytearray(size)
        for start in range(offset - offset % BLOCK, end, BLOCK):
            block = memoryview(self._blocks.get(self.uri, start, functools.partial(self._block, start)))
            first, last = max(offset, start), min(end, start + BLOCK)
            found[first - offset : last - offset] = block[first - start : last - start]
        return found

    def _block(self, start: int) -> bytes:
        for _ in range(2):  # what was changed on its way may come as it is the next time
            data = objects.read(self.uri, start, min(BLOCK, self.size - start), self._etag)
            if hashlib.sha256(data).digest() == self._digests[start // BLOCK]:
                return data
        raise TransientError(
            f"{self.uri}: other bytes came than at its first read, after byte {start:,}; {objects.CHANGED}"
        )
