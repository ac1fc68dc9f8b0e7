"""Exact and near duplicates among any number of rows, in bounded memory: what grows with the rows is kept in files.

Rows whose signatures agree in a whole band are candidates (locality-sensitive hashing; Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, section 3.4). Candidates are joined if at least a share `threshold` of their signatures'
places are equal: that share estimates the Jaccard similarity of the rows' shingles (section 3.3).
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.prepare_dataset.minhash import PERMUTATIONS, mixed

RECALL = 0.99
"""The share of pairs exactly at the threshold that banding must find; of more similar pairs, more are found."""
PARTITION = 4_000_000
"""Rows whose band keys are sorted at a time."""
LEADERS = 64
"""Rows of one bucket of a band that the other rows in it are compared with; see `_join_near`."""
_BLOCK = 1 << 18
_PART = 1 << 16


class Verdicts(NamedTuple):
    """By row, of shape (rows,).

    Whether it stays; whether one of the same conversation stays in its place; whether it was given to evaluate on;
    where its content hash lies in [0, 1).
    """

    kept: NDArray[np.bool_]
    exact: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    shares: NDArray[np.float32]


def bands(threshold: float) -> tuple[int, int]:
    """How many bands of how many rows of the signature find pairs at the threshold: the fewest, longest that do.

    Two rows of similarity s agree in one place of the signature with probability s, in a whole band of r places with
    s^r, and in at least one of b bands with 1 - (1 - s^r)^b. Longer bands give fewer candidates to compare, so the
    longest that still find a share `RECALL` of the pairs at the threshold are taken.
    """
    for length in range(PERMUTATIONS, 0, -1):
        number = PERMUTATIONS // length
        if 1 - (1 - threshold**length) ** number >= RECALL:
            return number, length
    return PERMUTATIONS, 1


class Index:
    """Takes in rows in order, then says which stay.

    Args:
        folder: for its files; about 700 bytes a row.
        threshold: share of equal signature places from which rows are near duplicates; 0: only exact ones are sought.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        """See the class."""
        self.threshold = threshold
        self.rows = 0
        self._folder = folder
        self._number, self._length = bands(threshold) if threshold else (0, 0)
        self._factors = np.random.default_rng(5).integers(0, 2**63, self._length, dtype=np.uint64) | np.uint64(1)
        self._files = contextlib.ExitStack()
        names = ["ids", "held_out", "signatures", *(f"band{band}" for band in range(self._number))]
        self._file = {name: self._files.enter_context((folder / name).open("w+b")) for name in names}

    def add(self, ids: NDArray[np.uint8], signatures: NDArray[np.uint32], held_out: bool) -> None:
        """Takes in the next rows.

        Args:
            ids: sha256 of each conversation, of shape (rows, 32).
            signatures: of shape (rows, PERMUTATIONS); not read where near duplicates are not sought.
            held_out: whether they were given to evaluate on: then they stay before any other.
        """
        self.rows += len(ids)
        self._file["ids"].write(ids.tobytes())
        self._file["held_out"].write(bytes([held_out]) * len(ids))
        if self.threshold:
            self._file["signatures"].write(signatures.tobytes())
        for band in range(self._number):
            part = signatures[:, band * self._length : (band + 1) * self._length].astype(np.uint64)
            # One 64-bit key per band: a sum of mixed places with odd random factors, so that order counts. Keys of
            # unequal bands collide with a probability near 2^-64, and then only cost a comparison.
            self._file[f"band{band}"].write(mixed((mixed(part + np.uint64(1)) * self._factors).sum(axis=1)).tobytes())

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def verdicts(self) -> Verdicts:
        """Decides: of each cluster of duplicates the row with the lowest content hash stays, a held-out one first."""
        for file in self._file.values():
            file.flush()
        precedence = self._precedence()
        clusters = _Clusters(self._folder, precedence)
        for bucket in self._buckets("ids", width=32):
            ids = self._entries("ids", bucket, 32)
            for same in _equal(ids):
                clusters.join(bucket[same])
        exact = np.concatenate([np.zeros(0, bool), *(~own for own in clusters.own())])
        for band in range(self._number):
            for bucket in self._buckets(f"band{band}", width=8, clusters=clusters):
                self._join_near(clusters, bucket[~exact[bucket]])
        return Verdicts(
            kept=np.concatenate([np.zeros(0, bool), *clusters.own()]),
            exact=exact,
            held_out=precedence >> np.uint64(63) == 0,
            shares=((precedence & np.uint64(2**63 - 1)) / 2**63).astype(np.float32),
        )

    def _join_near(self, clusters: "_Clusters", bucket: NDArray[np.int64]) -> None:
        bucket = clusters.in_precedence(bucket)
        for start in range(1, len(bucket), _PART):
            rows = np.concatenate([bucket[:1], bucket[start : start + _PART]])
            signatures = self._entries("signatures", rows, 4 * PERMUTATIONS).view(np.uint32)
            # Each leader takes the rows like it, and the rest goes on. In a bucket of rows that are all unlike, there
            # would be as many leaders as rows, and quadratic work: so their number is bounded, and pairs that are alike
            # are found in other bands.
            for _ in range(LEADERS):
                if len(rows) < 2:
                    break
                like = (signatures == signatures[0]).mean(axis=1) >= self.threshold
                clusters.join(rows[like])
                rows, signatures = rows[~like], signatures[~like]

    def _precedence(self) -> NDArray[np.uint64]:
        """By row: 63 bits of its content hash, above them a bit that puts held-out rows first."""
        keys = _mapped(self._folder / "precedence", np.uint64, self.rows)
        for (ids, first), (held_out, _) in zip(self._blocks("ids", 32), self._blocks("held_out", 1), strict=True):
            hashes = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64) >> np.uint64(1)
            keys[first : first + len(ids)] = hashes | ((held_out.ravel() == 0).astype(np.uint64) << np.uint64(63))
        return keys

    def _entries(self, name: str, rows: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
        """Some rows' entries of one file, of shape (rows, width), read singly: a mapped file would fill the memory."""
        file = self._file[name].fileno()
        data = b"".join(os.pread(file, width, int(row) * width) for row in rows)
        return np.frombuffer(data, np.uint8).reshape(len(rows), width)

    def _blocks(self, name: str, width: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
        """One file's entries in blocks of shape (rows, width), each with the number of its first row."""
        self._file[name].seek(0)
        first = 0
        while data := self._file[name].read(_BLOCK * width):
            yield np.frombuffer(data, np.uint8).reshape(-1, width), first
            first += len(data) // width

    def _buckets(self, name: str, width: int, clusters: "_Clusters | None" = None) -> Iterator[NDArray[np.int64]]:
        """Rows, two or more, that share a key (the first 8 bytes of their entry) and are not yet of one cluster."""
        partitions = -(-self.rows // PARTITION)
        for partition in range(partitions):
            found = []
            for block, first in self._blocks(name, width):
                keys = block[:, :8].copy().view(np.uint64).ravel()
                rows = np.flatnonzero(keys % np.uint64(partitions) == partition)
                found.append((keys[rows], rows + first))
            keys, rows = (np.concatenate(parts) for parts in zip(*found, strict=True))
            order = np.argsort(keys, kind="stable")
            starts, ends = _runs(keys[order])
            rows = rows[order]
            if clusters and len(starts):
                several = clusters.are_several(rows, starts, ends)
                starts, ends = starts[several], ends[several]
            for start, end in zip(starts, ends, strict=True):
                yield rows[start:end]


class _Clusters:
    """Which rows are one cluster (union-find); a cluster's root is its first row in precedence."""

    def __init__(self, folder: Path, precedence: NDArray[np.uint64]) -> None:
        self._precedence = precedence
        self._parents = _mapped(folder / "parents", np.int64, len(precedence))
        self._parents[:] = np.arange(len(precedence))

    def _root(self, row: int) -> int:
        parents = self._parents
        while (parent := int(parents[row])) != row:
            parents[row] = parents[parent]
            row = parent
        return row

    def join(self, rows: NDArray[np.int64]) -> None:
        roots = {self._root(int(row)) for row in rows}
        first = min(roots, key=lambda row: (self._precedence[row], row))
        for root in roots:
            self._parents[root] = first

    def are_several(
        self, rows: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the rows from each start to its end are of more than one cluster."""
        lengths = ends - starts
        first = np.cumsum(lengths) - lengths
        roots = rows[np.arange(lengths.sum()) + np.repeat(starts - first, lengths)]
        while (self._parents[roots] != roots).any():
            roots = self._parents[roots]
        return np.asarray(np.minimum.reduceat(roots, first) != np.maximum.reduceat(roots, first))

    def in_precedence(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return rows[np.lexsort((rows, self._precedence[rows]))]

    def own(self) -> Iterator[NDArray[np.bool_]]:
        """Whether each row is its cluster's root, block by block."""
        for start in range(0, len(self._parents), _BLOCK):
            block = self._parents[start : start + _BLOCK]
            yield np.asarray(block) == np.arange(start, start + len(block))


def _mapped(path: Path, kind: type[np.generic], rows: int) -> NDArray[Any]:
    # Pages of a mapped file can be written back and dropped, where memory is short.
    return np.memmap(path, kind, "w+", shape=(rows,)) if rows else np.zeros(0, kind)


def _runs(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where runs of equal keys, of two or more, start and end in sorted keys."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends = np.append(starts[1:], len(keys))
    repeated = ends - starts > 1
    return starts[repeated], ends[repeated]


def _equal(entries: NDArray[np.uint8]) -> Iterator[NDArray[np.int64]]:
    """The places of entries that are equal in every byte."""
    found: dict[bytes, list[int]] = {}
    for place, entry in enumerate(entries):
        found.setdefault(entry.tobytes(), []).append(place)
    return (np.array(places) for places in found.values() if len(places) > 1)
