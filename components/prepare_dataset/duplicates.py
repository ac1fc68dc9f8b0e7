"""Exact and near duplicates among any number of rows, in bounded memory: what grows with the rows is kept in files.

Rows whose signatures agree in a whole band are candidates (locality-sensitive hashing; Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, section 3.4). Candidates are joined if at least a share `threshold` of the values in their
signatures are equal: that share estimates the Jaccard similarity of the rows' shingles (section 3.3).
"""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.prepare_dataset.minhash import PERMUTATIONS, mix

RECALL = 0.99
"""The share of pairs exactly at the threshold that banding must find; of more similar pairs, more are found."""
PARTITION = 4_000_000
"""Rows whose band keys are sorted at a time: 64 MB of keys and row numbers, and as much again for their order."""
LEADERS = 64
"""Rows of one bucket of a band that the other rows in it are compared with; see `_join_near`."""
_BLOCK = 1 << 18
"""Rows of a file that are read at a time: at most 8 MiB."""
_PART = 1 << 16
"""Rows of a bucket whose signatures are in memory at a time: 32 MiB."""


class Deduplicated(NamedTuple):
    """What was found of each row; all of shape (rows,).

    Attributes:
        kept: whether the row stays.
        exact_duplicate: whether another row with the same conversation stays in its place.
        held_out: whether it was given to evaluate on.
        hash_fractions: its content hash as a number in [0, 1).
    """

    kept: NDArray[np.bool_]
    exact_duplicate: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    hash_fractions: NDArray[np.float32]


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many rows of the signature find pairs at the threshold: the fewest, longest that do.

    Two rows of similarity s agree in one value of the signature with probability s, in a whole band of r values with
    s^r, and in at least one of b bands with 1 - (1 - s^r)^b (section 3.4.2). Longer bands give fewer candidates to
    compare, so the longest that still find a share `RECALL` of the pairs at the threshold are taken. At 0.75, 21 bands
    of 6 values find 1 - (1 - 0.75^6)^21 = 0.984 of them, and 25 of 5 find 0.9989: so these are used.
    """
    for length in range(PERMUTATIONS, 0, -1):
        number = PERMUTATIONS // length
        if 1 - (1 - threshold**length) ** number >= RECALL:
            return number, length
    return PERMUTATIONS, 1


class DuplicateIndex:
    """Collects rows in order, then says which stay.

    Args:
        folder: for its files; per row 512 bytes of signature, 32 of content hash, 8 for each band, and 17 more.
        threshold: share of equal signature values from which rows are near duplicates; 0: look for exact ones only.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        """See the class."""
        self.threshold = threshold
        self.rows = 0
        self._folder = folder
        self._bands, self._length = bands(threshold) if threshold else (0, 0)
        self._factors = np.random.default_rng(5).integers(0, 2**63, self._length, dtype=np.uint64) | np.uint64(1)
        self._files = contextlib.ExitStack()
        names = ["ids", "held_out", "signatures", *(f"band{band}" for band in range(self._bands))]
        self._file = {name: self._files.enter_context((folder / name).open("w+b")) for name in names}

    def add(self, ids: NDArray[np.uint8], signatures: NDArray[np.uint32], held_out: bool) -> None:
        """Adds the next rows.

        Args:
            ids: sha256 of each conversation, of shape (rows, 32).
            signatures: of shape (rows, PERMUTATIONS); not read where only exact duplicates are looked for.
            held_out: whether they were given to evaluate on: then they stay before any other.
        """
        self.rows += len(ids)
        self._file["ids"].write(ids.tobytes())
        self._file["held_out"].write(bytes([held_out]) * len(ids))
        if self.threshold:
            self._file["signatures"].write(signatures.tobytes())
        for band in range(self._bands):
            part = signatures[:, band * self._length : (band + 1) * self._length].astype(np.uint64)
            # One 64-bit key per band: a sum of mixed values with odd random factors, so that order counts. Keys of
            # unequal bands collide with a probability near 2^-64, and then only cost a comparison.
            self._file[f"band{band}"].write(mix((mix(part + np.uint64(1)) * self._factors).sum(axis=1)).tobytes())

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def deduplicate(self) -> Deduplicated:
        """Decides: of each cluster of duplicates the row with the lowest content hash stays, a held-out one first."""
        for file in self._file.values():
            file.flush()
        priorities = self._priorities()
        clusters = _Clusters(self._folder, priorities)
        for bucket in self._buckets("ids", width=32):
            # The key is 8 bytes of the hash; all 32 tell whether the conversations are the same.
            _, groups = np.unique(self._entries("ids", bucket, 32), axis=0, return_inverse=True)
            for group in range(groups.max() + 1):
                clusters.join(bucket[groups.ravel() == group])
        exact_duplicate = ~clusters.is_root()
        for band in range(self._bands):
            for bucket in self._buckets(f"band{band}", width=8, clusters=clusters):
                self._join_near(clusters, bucket[~exact_duplicate[bucket]])
        return Deduplicated(
            kept=clusters.is_root(),
            exact_duplicate=exact_duplicate,
            held_out=priorities >> np.uint64(63) == 0,
            hash_fractions=((priorities & np.uint64(2**63 - 1)) / 2**63).astype(np.float32),
        )

    def _join_near(self, clusters: "_Clusters", bucket: NDArray[np.int64]) -> None:
        bucket = clusters.by_priority(bucket)
        for start in range(1, len(bucket), _PART):
            rows = np.concatenate([bucket[:1], bucket[start : start + _PART]])
            signatures = self._entries("signatures", rows, 4 * PERMUTATIONS).view(np.uint32)
            # The leader algorithm (Hartigan 1975, Clustering Algorithms): the first row takes all rows that
            # are similar to it, then the first of the rest does. Where all rows of a bucket differ, there would be as
            # many leaders as rows, and quadratic work. So their number is bounded; pairs that are missed here share
            # other bands.
            for _ in range(LEADERS):
                if len(rows) < 2:
                    break
                similar = (signatures == signatures[0]).mean(axis=1) >= self.threshold
                clusters.join(rows[similar])
                rows, signatures = rows[~similar], signatures[~similar]

    def _priorities(self) -> NDArray[np.uint64]:
        """By row, the lowest stays: 63 bits of its content hash, above them a bit that puts held-out rows first."""
        keys = _mapped(self._folder / "priorities", np.uint64, self.rows)
        for (ids, first), (held_out, _) in zip(self._blocks("ids", 32), self._blocks("held_out", 1), strict=True):
            hashes = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64) >> np.uint64(1)
            keys[first : first + len(ids)] = hashes | ((held_out.ravel() == 0).astype(np.uint64) << np.uint64(63))
        return keys

    def _entries(self, name: str, rows: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
        """The entries of some rows in one file, of shape (rows, width).

        They are read one by one: the pages of a mapped file would fill the memory.
        """
        file = self._file[name].fileno()
        data = b"".join(os.pread(file, width, int(row) * width) for row in rows)
        return np.frombuffer(data, np.uint8).reshape(len(rows), width)

    def _blocks(self, name: str, width: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """The entries of one file in blocks of shape (rows, width), each with the number of its first row."""
        self._file[name].seek(0)
        first = 0
        while data := self._file[name].read(_BLOCK * width):
            yield np.frombuffer(data, np.uint8).reshape(-1, width), first
            first += len(data) // width

    def _buckets(self, name: str, width: int, clusters: "_Clusters | None" = None) -> Iterator[NDArray[np.int64]]:
        """Rows, two or more, that share a key (the first 8 bytes of their entry) and are not yet in one cluster.

        Keys are hashes, so their remainders spread them evenly over the partitions. Each partition reads the whole file
        again: n rows take n / PARTITION passes.
        """
        partitions = math.ceil(self.rows / PARTITION)
        for partition in range(partitions):
            parts = []
            for block, first in self._blocks(name, width):
                keys = block[:, :8].copy().view(np.uint64).ravel()
                rows = np.flatnonzero(keys % np.uint64(partitions) == partition)
                parts.append((keys[rows], rows + first))
            keys, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
            order = np.argsort(keys, kind="stable")
            keys, rows = keys[order], rows[order]
            starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
            ends = np.append(starts[1:], len(keys))
            wanted = ends - starts > 1
            if clusters and wanted.any():
                wanted[wanted] = clusters.are_several(rows, starts[wanted], ends[wanted])
            for start, end in zip(starts[wanted], ends[wanted], strict=True):
                yield rows[start:end]


class _Clusters:
    """Which rows are one cluster (union-find); a cluster's root is its row of the first priority."""

    def __init__(self, folder: Path, priorities: NDArray[np.uint64]) -> None:
        self._priorities = priorities
        self._parents = _mapped(folder / "parents", np.int64, len(priorities))
        self._parents[:] = np.arange(len(priorities))

    def _root(self, row: int) -> int:
        parents = self._parents
        while (parent := int(parents[row])) != row:
            parents[row] = parents[parent]  # path halving: keeps paths short (Tarjan, van Leeuwen 1984)
            row = parent
        return row

    def join(self, rows: NDArray[np.int64]) -> None:
        roots = {self._root(int(row)) for row in rows}
        first = min(roots, key=lambda row: (self._priorities[row], row))
        for root in roots:
            self._parents[root] = first

    def are_several(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the rows from each start to its end are in more than one cluster."""
        lengths = ends - starts
        first = np.cumsum(lengths) - lengths
        roots = rows[np.arange(lengths.sum()) + np.repeat(starts - first, lengths)]
        while (self._parents[roots] != roots).any():
            roots = self._parents[roots]
        return np.asarray(np.minimum.reduceat(roots, first) != np.maximum.reduceat(roots, first))

    def by_priority(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[np.lexsort((rows, self._priorities[rows]))]

    def is_root(self) -> NDArray[np.bool_]:
        """Whether each row is its cluster's root, of shape (rows,)."""
        found = np.empty(len(self._parents), bool)
        for start in range(0, len(found), _BLOCK):  # whole, the comparison would take 8 bytes per row
            block = self._parents[start : start + _BLOCK]
            found[start : start + _BLOCK] = block == np.arange(start, start + len(block))
        return found


def _mapped(path: Path, kind: type[np.generic], rows: int) -> NDArray[Any]:
    # Pages of a mapped file can be written back and dropped, where memory is short.
    return np.memmap(path, kind, "w+", shape=(rows,)) if rows else np.zeros(0, kind)
