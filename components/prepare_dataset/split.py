"""The second pass: which prepared rows go to which side, and their labels."""

import enum
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import chat_template, tokenized
from qlora_pipelines.components.prepare_dataset.duplicates import Index


class Fate(enum.IntEnum):
    """What becomes of a row that could be prepared; from `EXACT` on it is left out as a duplicate."""

    TRAIN = 0
    EVAL = 1
    EXACT = 2
    NEAR = 3
    CONTAMINATED = 4


Fates = NDArray[np.uint8]
Runs = tuple[NDArray[np.uint64], NDArray[np.uint64]]


class Contamination:
    """Finds training rows that share a run of words with an evaluation row, as GPT-3's authors did (Brown et al. 2020).

    The evaluation rows come first; the hashes of their runs stay in memory.
    """

    def __init__(self) -> None:
        """See the class."""
        self._known: NDArray[np.uint64] = np.zeros(0, np.uint64)
        self.rows: list[NDArray[np.int64]] = []

    def add(self, runs: Runs | None, held_out: bool, first: int) -> None:
        """Takes in the runs of the next rows: hashes, and offsets of each row's; `first` is the first row's number."""
        if runs is None or len(runs[1]) < 2:
            return
        hashes, offsets = runs
        if held_out:
            self._known = np.union1d(self._known, hashes)
        elif len(self._known):
            # `_known` is sorted: np.isin would sort it anew for each chunk.
            nearest = self._known[np.minimum(np.searchsorted(self._known, hashes), len(self._known) - 1)]
            shared = np.logical_or.reduceat(nearest == hashes, offsets[:-1].astype(np.int64))
            self.rows.append(np.flatnonzero(shared) + first)


def fates(index: Index, contamination: Contamination, eval_share: float | None) -> Fates:
    """Every row's fate, of shape (rows,).

    Args:
        index: holds all rows.
        contamination: holds the rows that share words with evaluation rows.
        eval_share: the share to hold out by content hash; None: evaluation rows were given.
    """
    verdicts = index.verdicts()
    found = np.where(verdicts.kept, Fate.TRAIN, np.where(verdicts.exact, Fate.EXACT, Fate.NEAR)).astype(np.uint8)
    # By content, so that a row stays on its side as the data grows.
    held_out = verdicts.held_out if eval_share is None else verdicts.shares < eval_share
    found[verdicts.kept & held_out] = Fate.EVAL
    for rows in contamination.rows:
        found[rows[found[rows] == Fate.TRAIN]] = Fate.CONTAMINATED
    return found


def select(path: Path, found: Fates) -> Iterator[tuple[str, Any, Any]]:
    """The kept rows, batch by batch: side, RecordBatch of `tokenized.schema()`, and the same rows as staged."""
    import pyarrow as pa

    first = 0
    # Read, not mapped: pages of a mapped file would count as this process's memory.
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_file(file) as staged:
        for number in range(staged.num_record_batches):
            batch = staged.get_batch(number)
            part = found[first : first + batch.num_rows]
            first += batch.num_rows
            for side, fate in (("train", Fate.TRAIN), ("eval", Fate.EVAL)):
                rows = batch.filter(pa.array(part == fate))
                if rows.num_rows:
                    yield side, _labelled(rows), rows


def _labelled(rows: Any) -> Any:
    import pyarrow as pa

    ids = rows.column("input_ids")
    offsets = ids.offsets.to_numpy()
    values = ids.values.to_numpy()
    labels = np.full(len(values), chat_template.IGNORED, np.int32)
    marks = supervised(rows)
    labels[marks] = values[marks]
    columns = {
        "id": rows.column("id"),
        "input_ids": ids,
        "labels": pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels)),
        **{name: rows.column(name) for name in ("messages", "tools", "group", "slice")},
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in tokenized.schema().names], schema=tokenized.schema())


def supervised(rows: Any) -> NDArray[np.bool_]:
    """Which ids of staged rows are supervised, of the shape of the ids' values."""
    ids, spans = rows.column("input_ids"), rows.column("spans")
    starts = ids.offsets.to_numpy()
    bounds = spans.values.to_numpy()
    counts = np.diff(spans.offsets.to_numpy())
    places = bounds[spans.offsets.to_numpy()[0] :][: counts.sum()] + np.repeat(starts[:-1], counts)
    edges = np.zeros(len(ids.values) + 1, np.int32)
    np.add.at(edges, places[::2], 1)
    np.add.at(edges, places[1::2], -1)
    return np.asarray(np.cumsum(edges[:-1]) > 0)
