"""The second pass: which prepared rows go to which side, and their labels."""

import enum
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import chat_template, tokenized
from qlora_pipelines.components.core.data.duplicates import DuplicateIndex


class RowStatus(enum.IntEnum):
    """What happens to a row that could be prepared; from `EXACT_DUPLICATE` on, it is left out."""

    TRAIN = 0
    EVAL = 1
    EXACT_DUPLICATE = 2
    NEAR_DUPLICATE = 3
    CONTAMINATED = 4


Statuses = NDArray[np.uint8]
NGrams = tuple[NDArray[np.uint64], NDArray[np.uint64]]


class Contamination:
    """Finds training rows that share a run of words with an evaluation row.

    GPT-3's authors did so with up to 13 words (Brown et al. 2020, appendix C). The evaluation rows come first. The
    hashes of their n-grams stay in memory: 8 bytes per word of the evaluation data.
    """

    def __init__(self) -> None:
        """See the class."""
        self._evaluation: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.rows: list[NDArray[np.int64]] = []

    def add(self, ngrams: NGrams | None, held_out: bool, first: int) -> None:
        """Adds the next rows.

        Args:
            ngrams: hashes of all their n-grams, and the offsets of each row's, of shape (rows + 1,).
            held_out: whether they are evaluation rows.
            first: number of the first row.
        """
        if ngrams is None or len(ngrams[1]) < 2:
            return
        hashes, offsets = ngrams
        if held_out:
            self._evaluation = np.union1d(self._evaluation, hashes)
        elif len(self._evaluation):
            # `_evaluation` is sorted. np.isin would sort it again for each chunk.
            places = np.minimum(np.searchsorted(self._evaluation, hashes), len(self._evaluation) - 1)
            shared = np.logical_or.reduceat(self._evaluation[places] == hashes, offsets[:-1].astype(np.int64))
            self.rows.append(np.flatnonzero(shared) + first)


def assign(
    index: DuplicateIndex, contamination: Contamination, eval_share: float | None
) -> tuple[Statuses, list[tuple[int, int]]]:
    """The status of every row, of shape (rows,), and a few near duplicates, each with the row that stays for it.

    Args:
        index: holds all rows.
        contamination: holds the rows that share words with evaluation rows.
        eval_share: the share to hold out by content hash; None: evaluation rows were given.
    """
    rows = index.deduplicate()
    duplicate = np.where(rows.exact_duplicate, RowStatus.EXACT_DUPLICATE, RowStatus.NEAR_DUPLICATE)
    statuses = np.where(rows.kept, RowStatus.TRAIN, duplicate).astype(np.uint8)
    # A hash is as good as a uniform random number, so a share eval_share of the rows is below it. The row number
    # would do too, but with the hash a row stays on its side when the data grows.
    held_out = rows.held_out if eval_share is None else rows.hash_fractions < eval_share
    statuses[rows.kept & held_out] = RowStatus.EVAL
    for numbers in contamination.rows:
        statuses[numbers[statuses[numbers] == RowStatus.TRAIN]] = RowStatus.CONTAMINATED
    return statuses, rows.examples


def ids_of(path: Path, numbers: Iterable[int]) -> dict[int, list[int]]:
    """The token ids of some staged rows, by the row's number."""
    import pyarrow as pa

    found: dict[int, list[int]] = {}
    wanted, first = sorted(set(numbers)), 0
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as staged:
        for number in range(staged.num_record_batches if wanted else 0):
            batch = staged.get_batch(number)
            for row in wanted:
                if first <= row < first + batch.num_rows:
                    found[row] = batch.column("input_ids")[row - first].as_py()
            first += batch.num_rows
    return found


def select(path: Path, statuses: Statuses) -> Iterator[tuple[str, Any, Any]]:
    """The kept rows, batch by batch: side, RecordBatch of `tokenized.schema()`, and the same rows as staged."""
    import pyarrow as pa

    first = 0
    # Read, not mapped: pages of a mapped file would count as this process's memory.
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as staged:
        for number in range(staged.num_record_batches):
            batch = staged.get_batch(number)
            part = statuses[first : first + batch.num_rows]
            first += batch.num_rows
            for side, status in (("train", RowStatus.TRAIN), ("eval", RowStatus.EVAL)):
                rows = batch.take(tokenized.to_arrow(np.flatnonzero(part == status).astype(np.int32)))
                if rows.num_rows:
                    yield side, _labelled(rows), rows


def _labelled(rows: Any) -> Any:
    import pyarrow as pa

    ids, schema = rows.column("input_ids"), tokenized.schema()
    # Labels are the ids themselves where they are supervised; the model shifts them by one position.
    labels = np.where(supervised(rows), tokenized.to_numpy(ids.values), np.int32(chat_template.IGNORED))
    column = pa.ListArray.from_arrays(ids.offsets, tokenized.to_arrow(labels))
    arrays = [column if name == "labels" else rows.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def supervised(rows: Any) -> NDArray[np.bool_]:
    """Which ids of staged rows are supervised, of the shape of the ids' values.

    Each span adds 1 at its start and subtracts 1 at its end, so the running sum is positive inside a span.
    """
    ids, spans = rows.column("input_ids"), rows.column("spans")
    counts = np.diff(tokenized.to_numpy(spans.offsets))
    # Spans count from the start of their row; here from the start of the first row.
    bounds = tokenized.to_numpy(spans.flatten()) + np.repeat(tokenized.to_numpy(ids.offsets)[:-1], counts)
    edges = np.zeros(len(ids.values) + 1, np.int32)
    np.add.at(edges, bounds[::2], 1)
    np.add.at(edges, bounds[1::2], -1)
    return np.asarray(np.cumsum(edges[:-1]) > 0)
