"""Exact and near duplicates among any number of rows, in bounded memory: what grows with the rows is kept in files.

Rows whose signatures agree in a whole band are candidates (locality-sensitive hashing; Leskovec, Rajaraman, Ullman,
Mining of Massive Datasets, section 3.4). Of candidates the exact similarity decides; see `similarity`.

An instruction that many rows share makes all of them candidates of one another. So the rows of a crowded bucket get
signatures of the shingles that are not common, and are candidates where these agree.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import minhash
from qlora_pipelines.components.core.data.clusters import Clusters, mapped
from qlora_pipelines.components.core.data.minhash import PERMUTATIONS, Sets, mix
from qlora_pipelines.components.core.data.row_files import Numbers, RowFiles
from qlora_pipelines.components.core.data.similarity import Common, similar_to_first

RECALL = 0.99
"""The share of pairs exactly at the threshold that banding must find; of more similar pairs, more are found."""
MANY = 0.2
"""The share of rows called near duplicates from which on people are told: perhaps they are none."""
LEADERS = 64
"""Rows of one bucket of a band that the other rows in it are compared with; see `_alike`."""
EXAMPLES = 3
_ROWS = 1 << 12
"""Rows of which the buckets are compared at a time."""
_PART = 1 << 20
"""Shingles that are compared at a time: with what is made of them some 40 MiB."""


class Deduplicated(NamedTuple):
    """What was found of each row; all arrays are of shape (rows,).

    Attributes:
        kept: whether the row stays.
        exact_duplicate: whether another row with the same conversation stays in its place.
        held_out: whether it was given to evaluate on.
        hash_fractions: its content hash as a number in [0, 1).
        examples: a few near duplicates by number, each with the number of the row that stays in its place.
    """

    kept: NDArray[np.bool_]
    exact_duplicate: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    hash_fractions: NDArray[np.float32]
    examples: list[tuple[int, int]]


def many(share: float) -> str:
    """What to say where more than `MANY` of the rows are near duplicates."""
    return (
        f"{share:.0%} of the rows count as near duplicates of others and are left out; if they are not, set"
        " prepare_dataset.near_duplicate_threshold higher, or to 0"
    )


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


def near_share(ids: list[bytes], rows: list[tuple[bytes, bytes]], threshold: float) -> float:
    """The share of a few rows that are near duplicates of others.

    Args:
        ids: sha256 of each conversation.
        rows: what is asked and what is answered in each.
        threshold: as `DuplicateIndex` takes it; 0: none are near duplicates.
    """
    if not threshold or not rows:
        return 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(DuplicateIndex(Path(folder), threshold)) as index:
        sets = minhash.sets(rows)
        index.add(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32), sets, minhash.signatures_of(sets), False)
        found = index.deduplicate()
    return float((~found.kept & ~found.exact_duplicate).mean())


class DuplicateIndex:
    """Collects rows in order, then says which stay.

    Args:
        folder: for its files; per row 32 bytes of content hash, 8 for each band, 4 for each shingle, and 25 more.
        threshold: Jaccard similarity from which rows are near duplicates; 0: look for exact ones only.
    """

    def __init__(self, folder: Path, threshold: float) -> None:
        """See the class."""
        self.threshold = threshold
        self.rows = 0
        self._bands, self._length = bands(threshold) if threshold else (0, 0)
        self._factors = np.random.default_rng(5).integers(0, 2**63, self._length, dtype=np.uint64) | np.uint64(1)
        of_bands = [f"{kind}{band}" for band in range(self._bands) for kind in ("band", "crowded")]
        self._files = RowFiles(folder, ["ids", "held_out", *of_bands])

    def add(self, ids: NDArray[np.uint8], sets: Sets, signatures: NDArray[np.uint32], held_out: bool) -> None:
        """Adds the next rows.

        Args:
            ids: sha256 of each conversation, of shape (rows, 32).
            sets: their shingles; not read where only exact duplicates are looked for, and neither are signatures.
            signatures: of these shingles, of shape (rows, PERMUTATIONS).
            held_out: whether they were given to evaluate on: then they stay before any other.
        """
        self.rows += len(ids)
        self._files.write("ids", ids.tobytes())
        self._files.write("held_out", bytes([held_out]) * len(ids))
        if self.threshold:
            self._files.write_sets(sets)
            self._write_bands("band", signatures)

    def _write_bands(self, kind: str, signatures: NDArray[np.uint32]) -> None:
        for band in range(self._bands):
            part = signatures[:, band * self._length : (band + 1) * self._length].astype(np.uint64)
            # One 64-bit key per band: a sum of mixed values with odd random factors, so that order counts. Keys of
            # unequal bands collide with a probability near 2^-64, and then only cost a comparison.
            keys = mix((mix(part + np.uint64(1)) * self._factors).sum(axis=1))
            self._files.write(f"{kind}{band}", keys.tobytes())

    def close(self) -> None:
        """Closes the files."""
        self._files.close()

    def deduplicate(self) -> Deduplicated:
        """Decides: of each cluster of duplicates the row with the lowest content hash stays, a held-out one first.

        In a cluster each row is similar to another one. A row that is not similar to the one that stays may stay too.
        """
        self._files.flush()
        priorities = self._priorities()
        clusters = Clusters(self._files.folder, priorities)
        for bucket in self._files.buckets("ids", 32):
            # The key is 8 bytes of the hash; all 32 tell whether the conversations are the same.
            ids = self._files.entries("ids", bucket, 32)
            while len(bucket):
                same = (ids == ids[0]).all(axis=1)
                clusters.join(bucket[same])
                bucket, ids = bucket[~same], ids[~same]
        kept = clusters.is_root()
        exact_duplicate = ~kept
        examples: list[tuple[int, int]] = []
        if self.threshold and self.rows:
            common = self._common(kept)
            self._join_near(clusters, kept, common)
            examples = self._leave_out(clusters, kept, common)
        return Deduplicated(
            kept=kept,
            exact_duplicate=exact_duplicate,
            held_out=priorities >> np.uint64(63) == 0,
            hash_fractions=((priorities & np.uint64(2**63 - 1)) / 2**63).astype(np.float32),
            examples=examples,
        )

    def _priorities(self) -> NDArray[np.uint64]:
        """By row, the lowest stays: 63 bits of its content hash, above them a bit that puts held-out rows first."""
        keys = mapped(self._files.folder / "priorities", np.uint64, self.rows)
        for (ids, first), (held_out, _) in zip(
            self._files.blocks("ids", 32), self._files.blocks("held_out", 1), strict=True
        ):
            hashes = ids[:, :8].copy().view(">u8").ravel().astype(np.uint64) >> np.uint64(1)
            keys[first : first + len(ids)] = hashes | ((held_out.ravel() == 0).astype(np.uint64) << np.uint64(63))
        return keys

    def _common(self, distinct: NDArray[np.bool_]) -> Common:
        common = Common(int(distinct.sum()), self._files.shingles)
        for rows in self._parts(np.flatnonzero(distinct)):
            common.count(self._files.sets(rows).values)
        common.finish()
        return common

    def _join_near(self, clusters: Clusters, distinct: NDArray[np.bool_], common: Common) -> None:
        crowded = np.zeros(self.rows, bool)

        def small(buckets: Iterable[Numbers]) -> Iterator[Numbers]:
            for bucket in buckets:
                bucket = bucket[distinct[bucket]]
                if len(bucket) > LEADERS:
                    crowded[bucket] = True
                else:
                    yield bucket

        for band in range(self._bands):
            for first, row in self._alike(small(self._files.buckets(f"band{band}", 8, clusters)), clusters, common):
                clusters.join(np.array([first, row]))
        again = np.flatnonzero(crowded)
        for rows in self._parts(again):
            self._write_bands("crowded", _telling_signatures(self._files.sets(rows), common))
        self._files.flush()
        for band in range(self._bands if len(again) else 0):
            buckets = self._files.buckets(f"crowded{band}", 8, clusters, again)
            for first, row in self._alike(buckets, clusters, common):
                clusters.join(np.array([first, row]))

    def _alike(self, buckets: Iterable[Numbers], clusters: Clusters, common: Common) -> Iterator[tuple[int, int]]:
        """Pairs of a row that stays before others and one of these that is similar to it.

        The leader algorithm (Hartigan 1975, Clustering Algorithms): the first row of a bucket takes all rows that are
        similar to it, then the first of the rest does. Where all rows of a bucket differ, there would be as many
        leaders as rows, and quadratic work. So their number is bounded; pairs that are missed here share other bands.
        """
        for rows, groups in self._batches(buckets, clusters):
            sets = self._files.sets(rows)
            for _ in range(LEADERS):
                similar = similar_to_first(sets, groups, common, self.threshold)
                is_first = np.concatenate([[True], groups[1:] != groups[:-1]])
                first = rows[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
                taken = similar & ~is_first
                yield from zip(first[taken].tolist(), rows[taken].tolist(), strict=True)
                left = ~similar & ~is_first
                left &= np.bincount(groups, left)[groups] > 1  # a row alone is done
                if not left.any():
                    break
                sets = sets.only(np.flatnonzero(left))
                rows, groups = rows[left], groups[left]

    def _batches(self, buckets: Iterable[Numbers], clusters: Clusters) -> Iterator[tuple[Numbers, Numbers]]:
        """Many buckets at a time: rows, each bucket's in the order in which they stay, and the number of its bucket.

        A bucket of many shingles comes in parts, of which each begins with the bucket's first row.
        """
        for many in _batched(bucket for bucket in buckets if len(bucket) > 1):
            groups = np.repeat(np.arange(len(many)), [len(bucket) for bucket in many])
            rows = clusters.ordered(np.concatenate(many), groups)
            firsts = np.searchsorted(groups, groups)
            start = 0
            for part in self._parts(rows):
                chosen = np.arange(start, start + len(part))
                if firsts[start] < start:
                    chosen = np.append(firsts[start], chosen)
                start += len(part)
                yield rows[chosen], groups[chosen]

    def _leave_out(self, clusters: Clusters, kept: NDArray[np.bool_], common: Common) -> list[tuple[int, int]]:
        """Takes out of `kept` the rows of each cluster that are similar to one that stays; gives a few such pairs."""
        near = np.flatnonzero(kept & ~clusters.is_root())
        roots = clusters.roots(near)
        order = np.argsort(roots, kind="stable")
        near, roots = near[order], roots[order]
        starts = np.flatnonzero(np.concatenate([[True], roots[1:] != roots[:-1]]))[: len(near)]
        members = np.split(near, starts[1:])
        found = (np.append(roots[start], rows) for start, rows in zip(starts, members, strict=False))
        examples: list[tuple[int, int]] = []
        for first, row in self._alike(found, clusters, common):
            kept[row] = False
            if len(examples) < EXAMPLES:
                examples.append((row, first))
        return examples

    def _parts(self, rows: Numbers) -> Iterator[Numbers]:
        """Rows in parts of about `_PART` shingles."""
        if len(rows):
            places = np.cumsum(self._files.lengths(rows)) // _PART
            yield from np.split(rows, np.flatnonzero(places[1:] != places[:-1]) + 1)


def _batched(buckets: Iterable[Numbers]) -> Iterator[list[Numbers]]:
    many: list[Numbers] = []
    rows = 0
    for bucket in buckets:
        many.append(bucket)
        rows += len(bucket)
        if rows >= _ROWS:
            yield many
            many, rows = [], 0
    if many:
        yield many


def _telling_signatures(sets: Sets, common: Common) -> NDArray[np.uint32]:
    """Signatures of the shingles that are not common; of a row that has no others, of one made of all of them."""
    hashes, starts = mix(sets.values.astype(np.uint64)), sets.offsets[:-1]
    telling = ~common.are(sets.values)
    counts = np.add.reduceat(telling, starts, dtype=np.int64)
    whole = mix(np.add.reduceat(hashes, starts))
    without = starts[counts == 0]
    telling[without], hashes[without] = True, whole[counts == 0]
    return minhash.signatures(hashes[telling], np.concatenate([[0], np.cumsum(np.maximum(counts, 1))]))
