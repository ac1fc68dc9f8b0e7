"""What is known of each row, in files of a scratch folder: any number of rows, in bounded memory."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data.minhash import Sets

PARTITION = 4_000_000
"""Rows whose keys are sorted at a time: 64 MB of keys and row numbers, and as much again for their order."""
_BLOCK = 1 << 18
"""Rows of a file that are read at a time: at most 8 MiB."""

Numbers = NDArray[np.int64]


class RowFiles:
    """Files with one entry a row, all of one width in a file, and one of the rows' shingles.

    Args:
        folder: for the files.
        names: of those with entries.
    """

    def __init__(self, folder: Path, names: list[str]) -> None:
        """See the class."""
        self.folder = folder
        self.shingles = 0
        self._stack = contextlib.ExitStack()
        self._file = {
            name: self._stack.enter_context((folder / name).open("w+b")) for name in [*names, "shingles", "ends"]
        }
        self._ends: NDArray[np.int64] = np.zeros(0, np.int64)

    def write(self, name: str, entries: bytes) -> None:
        """Appends the entries of the next rows."""
        self._file[name].write(entries)

    def write_sets(self, sets: Sets) -> None:
        """Appends the shingles of the next rows."""
        self.write("shingles", sets.values.tobytes())
        self.write("ends", (sets.offsets[1:] + self.shingles).tobytes())
        self.shingles += len(sets.values)

    def flush(self) -> None:
        """Makes what was written readable."""
        for file in self._file.values():
            file.flush()
        if self.shingles:
            self._ends = np.memmap(self.folder / "ends", np.int64, "r").view(np.ndarray)

    def close(self) -> None:
        """Closes the files."""
        self._stack.close()

    def lengths(self, rows: Numbers) -> Numbers:
        """How many shingles some rows have."""
        return np.asarray(self._ends[rows] - np.where(rows > 0, self._ends[rows - 1], 0))

    def sets(self, rows: Numbers) -> Sets:
        """The shingles of some rows, read, not mapped: the pages of a mapped file would fill the memory."""
        lengths = self.lengths(rows)
        starts = self._ends[rows] - lengths
        file = self._file["shingles"].fileno()
        # Rows that follow one another in the file are read at once.
        runs = np.flatnonzero(np.append(True, starts[1:] != starts[:-1] + lengths[:-1])[: len(rows)])
        sizes = np.add.reduceat(lengths, runs) if len(runs) else lengths
        places = zip(starts[runs].tolist(), sizes.tolist(), strict=True)
        data = b"".join(os.pread(file, 4 * length, 4 * start) for start, length in places)
        return Sets(np.frombuffer(data, np.uint32), np.concatenate([[0], np.cumsum(lengths)]))

    def entries(self, name: str, rows: Numbers, width: int) -> NDArray[np.uint8]:
        """The entries of some rows in one file, of shape (rows, width), read one by one too."""
        file = self._file[name].fileno()
        data = b"".join(os.pread(file, width, int(row) * width) for row in rows)
        return np.frombuffer(data, np.uint8).reshape(len(rows), width)

    def blocks(self, name: str, width: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """The entries of one file in blocks of shape (rows, width), each with the number of its first row."""
        self._file[name].seek(0)
        first = 0
        while data := self._file[name].read(_BLOCK * width):
            yield np.frombuffer(data, np.uint8).reshape(-1, width), first
            first += len(data) // width

    def buckets(self, name: str, width: int, clusters: Any = None, numbers: Numbers | None = None) -> Iterator[Numbers]:
        """Rows, two or more, that share a key (the first 8 bytes of their entry) and are not yet in one cluster.

        Keys are hashes, so their remainders spread them evenly over the partitions. Each partition reads the whole file
        again: n rows take n / PARTITION passes.

        Args:
            name: of the file.
            width: bytes of an entry.
            clusters: those that there are, `Clusters`; None: there are none.
            numbers: of the rows whose entries the file has; None: of all.
        """
        partitions = math.ceil(self._file[name].seek(0, os.SEEK_END) / width / PARTITION)
        for partition in range(partitions):
            parts = []
            for block, first in self.blocks(name, width):
                keys = block[:, :8].copy().view(np.uint64).ravel()
                rows = np.flatnonzero(keys % np.uint64(partitions) == partition)
                parts.append((keys[rows], rows + first))
            keys, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
            order = np.argsort(keys, kind="stable")
            keys, rows = keys[order], rows[order] if numbers is None else numbers[rows[order]]
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            ends = np.append(starts[1:], len(keys))
            wanted = ends - starts > 1
            if clusters and wanted.any():
                wanted[wanted] = clusters.are_several(rows, starts[wanted], ends[wanted])
            for start, end in zip(starts[wanted], ends[wanted], strict=True):
                yield rows[start:end]
