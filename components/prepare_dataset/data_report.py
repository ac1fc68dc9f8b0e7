"""The data as a page: where every row went, how long rows are, and what the model sees."""

import heapq
import html
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import duplicates, tokenized
from qlora_pipelines.components.core.report import Report
from qlora_pipelines.components.prepare_dataset.split import RowStatus, supervised

SAMPLES = 12
SHOWN_TOKENS = 400
"""Tokens of a sample that are shown; each takes some 30 bytes of the page."""
BROKEN, LONGEST_CHARACTER = "\ufffd", 4
"""What part of a character decodes to, and how many tokens a character of UTF-8 has at most."""
BATCH = 8
"""Rows per batch, for the estimate of what packing saves."""


class _Sample(NamedTuple):
    id: str
    ids: list[int]
    supervised: list[bool]


class _Side:
    """Figures of one side; `lengths` counts rows by length in tokens, of shape (max_length + 1,)."""

    def __init__(self, max_length: int) -> None:
        self.lengths: NDArray[np.int64] = np.zeros(max_length + 1, np.int64)
        self.supervised = self.cut = self.lost = 0

    @property
    def rows(self) -> int:
        return int(self.lengths.sum())

    @property
    def tokens(self) -> int:
        return int(self.lengths @ np.arange(len(self.lengths)))

    @property
    def supervised_share(self) -> float:
        return self.supervised / self.tokens

    def quantile(self, share: float) -> int:
        return int(np.searchsorted(np.cumsum(self.lengths), share * self.rows))


class Kept:
    """What the report says of the kept rows, gathered as they are written.

    Args:
        tokenizer: to show samples with.
        max_length: longest row, in tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        """See the class."""
        self.tokenizer, self.max_length = tokenizer, max_length
        self.sides = {side: _Side(max_length) for side in ("train", "eval")}
        self.samples: list[_Sample] = []

    def add(self, side: str, rows: Any) -> None:
        """Takes in staged rows that were kept."""
        figures = self.sides[side]
        offsets = tokenized.to_numpy(rows.column("input_ids").offsets)
        lengths = np.diff(offsets)
        marks = supervised(rows)
        lost = tokenized.to_numpy(rows.column("tokens")) - lengths
        figures.lengths += np.bincount(lengths, minlength=self.max_length + 1)
        figures.supervised += int(marks.sum() - marks[offsets[:-1]].sum())  # nothing predicts a row's first token
        figures.cut += int((lost > 0).sum())
        figures.lost += int(lost.sum())
        if side == "train":
            self._sample(rows, offsets, marks)

    def _sample(self, rows: Any, offsets: NDArray[np.int32], marks: NDArray[np.bool_]) -> None:
        # The lowest ids, which are hashes: a sample without a seed, the same in every run.
        values, ids = tokenized.to_numpy(rows.column("input_ids").values), rows.column("id").to_pylist()
        for place in heapq.nsmallest(SAMPLES, range(len(ids)), key=lambda place: str(ids[place])):
            part = slice(*offsets[place : place + 2])
            self.samples.append(_Sample(ids[place], values[part].tolist(), marks[part].tolist()))
        self.samples = heapq.nsmallest(SAMPLES, self.samples)


def write_report(
    path: str,
    result: Any,
    read: Any,
    statuses: NDArray[np.uint8],
    kept: Kept,
    note: str,
    near: Sequence[tuple[list[int], list[int]]],
) -> None:
    """Writes the page.

    Args:
        path: HTML file to write.
        result: the step's result.
        read: what the first pass counted.
        statuses: the status of every prepared row.
        kept: figures and samples of the kept rows.
        note: how the text was tokenised.
        near: token ids of a few near duplicates, each with those of the row that stays in its place.
    """
    train = kept.sides["train"]
    report = Report("Data", f"Every row read is accounted for. Data set {result.dataset_digest[:16]}, {note}.")
    report.figures(
        [
            ("rows to train on", result.train_rows),
            ("rows to evaluate on", result.eval_rows),
            ("duplicates left out", result.duplicate_rows),
            ("rows rejected or left out", result.rejected_rows),
            ("of the tokens supervised", f"{train.supervised_share:.0%}"),
        ]
    )
    _rows(report, read, statuses)
    _near(report, read, statuses, [[kept.tokenizer.decode(ids) for ids in pair] for pair in near])
    _tokens(report, kept)
    _packing(report, train, kept.max_length)
    report.section(
        "As the model sees them",
        f"{len(kept.samples)} training rows, token by token, special ones included. Coloured tokens are supervised.",
    )
    for sample in kept.samples:
        report.block(_marked(sample, kept.tokenizer))
    report.write(path)


def _rows(report: Report, read: Any, statuses: NDArray[np.uint8]) -> None:
    counts = np.bincount(statuses, minlength=len(RowStatus)).tolist()
    parts = {
        "to train on": counts[RowStatus.TRAIN],
        "to evaluate on": counts[RowStatus.EVAL],
        "left out: the same conversation is elsewhere": counts[RowStatus.EXACT_DUPLICATE],
        "left out: nearly the same is elsewhere": counts[RowStatus.NEAR_DUPLICATE],
        "left out: shares words with an evaluation row": counts[RowStatus.CONTAMINATED],
        "left out: the rows ask for it": read.left_out,
        "rejected": read.rejected,
    }
    report.section("Where every row went")
    report.table(["", "rows", "share"], [(what, rows, f"{rows / read.rows:.1%}") for what, rows in parts.items()])
    report.long_table(["file", "form", "rows read"], read.files)
    if read.reasons:
        report.section("Why rows were rejected or left out", "File and line of each are in the artifact rejected.")
        report.table(["reason", "rows", "such as"], _counted(read.reasons, read))
    if read.notes:
        report.section(
            "Notes on the rows", "These rows are used. What is not read or not trained of them is named here."
        )
        report.table(["", "rows", "such as"], _counted(read.notes, read))


def _counted(counter: Any, read: Any) -> list[tuple[str, int, str]]:
    return [(what, rows, ", ".join(read.examples[what])) for what, rows in counter.most_common(50)]


def _near(report: Report, read: Any, statuses: NDArray[np.uint8], examples: list[list[str]]) -> None:
    if not examples:
        return
    share = float((statuses == RowStatus.NEAR_DUPLICATE).sum()) / read.rows
    report.section("Near duplicates", f"{len(examples)} rows that were left out, each with the one that stays.")
    if share > duplicates.MANY:
        report.verdict(False, f"{duplicates.many(share)}.")
    report.table(["left out", "stays in its place"], examples)


def _tokens(report: Report, kept: Kept) -> None:
    lines = []
    for name, side in (("train", kept.sides["train"]), ("evaluate", kept.sides["eval"])):
        lengths = [side.quantile(0.5), side.quantile(0.95), int(np.flatnonzero(side.lengths).max())]
        shares = [f"{side.supervised_share:.1%}", *lengths, f"{side.cut / side.rows:.1%}"]
        lines.append([name, side.tokens, *shares, side.lost])
    head = ["", "tokens", "supervised", "median", "95 %", "longest", f"cut at {kept.max_length}", "tokens cut off"]
    report.section("Tokens")
    report.table(head, lines)
    report.histogram(kept.sides["train"].lengths.tolist(), "tokens per row", "training rows")


def _packing(report: Report, side: _Side, max_length: int) -> None:
    padded = padded_positions(side.lengths, BATCH)
    packed = packed_rows(side.lengths) * max_length
    report.section(
        "What packing will save",
        f"Positions the model computes in one pass over the training rows, padding included; packed to {max_length}.",
    )
    report.table(
        ["", "positions", "of them padding"],
        [
            (f"padded, {BATCH} rows per batch in random order", round(padded), f"{1 - side.tokens / padded:.0%}"),
            ("packed", packed, f"{1 - side.tokens / packed:.0%}"),
        ],
    )


def padded_positions(lengths: NDArray[np.int64], batch: int) -> float:
    """Positions where each row is padded to the longest of its batch, rows drawn at random.

    A batch's longest row is at most n tokens long with probability F(n)^batch, where F is the distribution of lengths.
    Its mean is the sum over n >= 0 of P(longest > n) = 1 - F(n)^batch, as of any whole number that is not negative.

    Args:
        lengths: rows by length in tokens.
        batch: rows per batch.
    """
    at_most = np.cumsum(lengths) / lengths.sum()
    return float((1 - at_most**batch).sum() * lengths.sum())


def packed_rows(lengths: NDArray[np.int64]) -> int:
    """Rows of full length needed when rows are packed best fit decreasing (Johnson 1973), as TRL's `bfd` does.

    The rows of one length are placed together. Best fit gives each the least room that holds it. A packed row that took
    one has less room than all others, so it takes as many as it can hold before the next one's turn.

    Args:
        lengths: rows by length in tokens; the longest length is that of a packed row.
    """
    rows, longest = int(lengths.sum()), len(lengths) - 1
    free = np.zeros(longest + 1, np.int64)  # packed rows by the room that is left in them
    free[longest] = rows
    for length in range(longest, 0, -1):
        left = int(lengths[length])
        for room in (np.flatnonzero(free[length:]) + length).tolist() if left else []:
            each = room // length
            full = min(int(free[room]), left // each)
            free[[room, room - each * length]] += [-full, full]
            left -= full * each
            if left and free[room]:
                free[[room, room - left * length]] += [-1, 1]
                left = 0
            if not left:
                break
    return rows - int(free[longest])


def _marked(sample: _Sample, tokenizer: Any) -> Markup:
    """The text of a sample, each token with its id, the supervised and the special ones marked."""
    special = set(tokenizer.added_tokens_decoder)
    parts = []
    shown = list(zip(sample.ids, sample.supervised, strict=True))[:SHOWN_TOKENS]
    for ids, marked in _characters(shown, tokenizer):
        content = html.escape(tokenizer.decode(ids))
        content = f"<i>{content}</i>" if ids[0] in special else content
        tag = "mark" if marked else "span"
        parts.append(f'<{tag} title="{" ".join(map(str, ids))}">{content}</{tag}>')
    more = len(sample.ids) - len(shown)
    return Markup("".join([*parts, f"<i> ... {more} more tokens</i>" if more else ""]))


def _characters(tokens: list[tuple[int, bool]], tokenizer: Any) -> Iterator[tuple[list[int], bool]]:
    """The tokens one by one; those that hold a character only together are given together."""
    ids: list[int] = []
    for place, (token, marked) in enumerate(tokens):
        ids.append(token)
        last = place + 1 == len(tokens) or tokens[place + 1][1] != marked
        if last or len(ids) == LONGEST_CHARACTER or not tokenizer.decode(ids).endswith(BROKEN):
            yield ids, marked
            ids = []
