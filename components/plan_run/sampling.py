"""The first rows of the data, tokenised as training will see them: from these the plan's figures are estimated."""

import collections
import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any, TypeVar

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import (
    arrow_rows,
    chat_template,
    duplicates,
    formats,
    listing,
    readers,
    similarity,
    template_variables,
)
from qlora_pipelines.components.core.data.listing import DataFile
from qlora_pipelines.components.core.data.row_keys import Reading
from qlora_pipelines.components.core.data.turns import LeftOut
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, vocabulary

START = 1 << 20
"""Bytes of a data file that are read for its first rows; more where they hold no whole row."""
MOST = 64 << 20
"""Bytes of rows, no longer compressed, after which no more are read."""
DOCUMENTS = 32
"""Documents that are looked into: each may be a request."""
ROWS = 200
"""Rows that are tokenised."""

T = TypeVar("T")
Numbered = list[tuple[int, T]]
"""Values of rows, each with the row's number."""


@dataclasses.dataclass(frozen=True)
class FirstRows:
    """The first rows of a file, with their numbers, and how many rows it has in total as far as that can be told.

    `unreadable` holds the reasons for those that cannot be read, with their numbers.
    """

    rows: Numbered[dict[str, Any]]
    unreadable: Numbered[str]
    total_rows: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the first rows of one side's first file tell.

    Attributes:
        form: what the rows' columns mean, a key of `formats.COLUMNS`.
        rows: of the whole side, an estimate.
        bytes_per_row: mean size of a row as JSON.
        tokens_per_row: mean number of tokens, cut at max_length.
        supervised: share of these tokens that is supervised.
        checked: how many rows were read.
        unusable: how many of these cannot be used.
        reason: number of the first of these and why; '' where there is none.
        left_out: how many ask not to be trained on.
        notes: what of the others is not used as one might expect, and of how many rows.
        encoded: those that can be used, as they will be trained on.
        near_duplicates: share of the usable ones that preparation would leave out as near duplicates of others.
    """

    form: str
    rows: int
    bytes_per_row: float
    tokens_per_row: float
    supervised: float
    checked: int
    unusable: int
    reason: str
    left_out: int = 0
    notes: dict[str, int] = dataclasses.field(default_factory=dict)
    encoded: tuple[chat_template.Encoded, ...] = ()
    near_duplicates: float = 0.0


def sample(source: dict[str, Any], config: RunConfig, tokenizer_files: Path) -> Sample:
    """Estimates what one side holds from the first rows of its first file.

    Args:
        source: of the listing.
        config: the whole run.
        tokenizer_files: folder of the base's tokenizer.

    Raises:
        InputError: the first rows cannot be read, are of no known form, or none of them can be used.
    """
    file = listing.first_file(source)
    are_documents = listing.kind_of(file.entry.path) in listing.DOCUMENTS
    first = _documents(source) if are_documents else first_rows(file)
    form, encoded, reasons, left_out, notes, near = _encoded(first.rows[:ROWS], file.uri, config, tokenizer_files)
    last = first.rows[:ROWS][-1][0]
    reasons = sorted([*reasons, *((number, reason) for number, reason in first.unreadable if number < last)])
    tokens = sum(len(item.input_ids) for item in encoded)
    # The other files are taken to have as many rows per byte.
    files = 1.0 if are_documents else sum(entry[1] for entry in source["files"]) / file.entry.size
    return Sample(
        form=form,
        rows=max(1, round(first.total_rows * files)),
        bytes_per_row=sum(len(json.dumps(row, default=str)) for _, row in first.rows) / len(first.rows),
        tokens_per_row=tokens / len(encoded),
        supervised=sum(item.supervised for item in encoded) / tokens,
        checked=len(encoded) + len(reasons) + left_out,
        unusable=len(reasons),
        reason="row {}: {}".format(*reasons[0]) if reasons else "",
        left_out=left_out,
        notes=dict(notes.most_common()),
        encoded=tuple(encoded),
        near_duplicates=near,
    )


def first_rows(file: DataFile) -> FirstRows:
    """The whole rows at the start of a file.

    Raises:
        InputError: there is none.
    """
    if listing.kind_of(file.entry.path) in (".parquet", ".arrow"):
        return _in_place(file)
    size = START
    while True:
        with file.open() as opened:
            data = opened.read(size)
        whole = len(data) >= file.entry.size
        rows, unreadable, used = _rows(data, file.uri, whole)
        if rows or whole or size > readers.LONGEST_LINE:
            break
        size *= 16
    if not rows:
        raise InputError(f"data {file.uri}: its first rows cannot be read; see the README for the kinds that are read")
    read = len(rows) + len(unreadable)
    # The row that the data ends in is read to a half, on average.
    return FirstRows(rows, unreadable, read if used == file.entry.size else (read + 0.5) * file.entry.size / used)


def _documents(source: dict[str, Any]) -> FirstRows:
    """The first documents of a side, each of which is a file, with the number of the file."""
    rows, unreadable = [], []
    for number, file in enumerate(listing.first_files(source, DOCUMENTS), 1):
        found = first_rows(file)
        rows += [(number, row) for _, row in found.rows]
        unreadable += [(number, reason) for _, reason in found.unreadable]
    return FirstRows(rows, unreadable, len(source["files"]))


def _rows(data: bytes, name: str, whole: bool) -> tuple[Numbered[dict[str, Any]], Numbered[str], int]:
    """The rows at the start of a file, why others cannot be read, and of how many bytes of `data` these are all.

    If the file goes on, the last one may be cut.
    """
    rows, unreadable, size = [], [], 0
    source = io.BytesIO(data)
    files = readers.files(io.BufferedReader(source), name)
    records = itertools.chain.from_iterable(found for _, found in files)
    with contextlib.nullcontext() if whole else contextlib.suppress(InputError):
        for number, record in records if whole else (record for record, _ in itertools.pairwise(records)):
            try:
                rows.append((number, readers.decode(record)))
            except ValueError as error:
                unreadable.append((number, str(error)))
            size += len(record) if isinstance(record, bytes) else 0
            if size > MOST:  # a little compressed data may stand for much
                return rows, unreadable, source.tell()
    return rows, unreadable, len(data)


def _in_place(file: DataFile) -> FirstRows:
    """The first rows of Parquet or Arrow, and how many there are by its metadata; in a compressed file, not by that."""
    import pyarrow
    import pyarrow.parquet

    with file.open() as opened:
        records = itertools.islice(readers.records(opened, file.uri), ROWS)
        rows = [(number, readers.decode(record)) for number, record in records]
        total_rows = len(rows)
        with contextlib.suppress(OSError, pyarrow.ArrowException):
            if file.uri.lower().endswith(".parquet"):
                total_rows = pyarrow.parquet.read_metadata(opened).num_rows
            elif file.uri.lower().endswith(".arrow"):
                total_rows = max(total_rows, arrow_rows.count(opened, file.entry.size))
    if not rows:
        raise InputError(f"data {file.uri}: it has no rows")
    return FirstRows(rows, [], total_rows)


def _encoded(
    rows: Numbered[dict[str, Any]], uri: str, config: RunConfig, files: Path
) -> tuple[str, list[chat_template.Encoded], Numbered[str], int, collections.Counter[str], float]:
    """A file's first rows as they will be trained on, and their form.

    With them come why others will be rejected, how many ask to be left out, notes on what is not used of the rows, and
    which share of them are near duplicates of others.

    Raises:
        InputError: they are of no known form, or all will be rejected.
    """
    prepare = config.for_step("prepare_dataset")
    renamed = []
    for _, row in rows:
        with contextlib.suppress(ValueError):
            renamed.append(formats.renamed(row, prepare.columns))
    form = formats.most_common_form(renamed) if prepare.form == "auto" else prepare.form
    if renamed and not form:
        columns = ", ".join(sorted(renamed[0]))
        raise InputError(
            f"data {uri}: its rows are of no known form (columns {columns}); name theirs in options,"
            " prepare_dataset.columns"
        )
    for name in prepare.extra_columns:
        if renamed and not any(name in row for row in renamed):
            columns = ", ".join(sorted(renamed[0]))
            raise InputError(f"data {uri}: its first rows have no column {name}, which extra_columns names ({columns})")
    tokenizer = loading.load_tokenizer(files)
    reading = Reading(prepare.consecutive_turns, template_variables.of(tokenizer), frozenset(prepare.extra_columns))
    beyond = vocabulary.beyond(tokenizer, files)
    encoded, reasons, texts, left_out, notes = [], [], [], 0, collections.Counter[str]()
    for number, row in rows:
        try:
            conversation = formats.conversation(formats.renamed(row, prepare.columns), form, reading)
            item = formats.encode(tokenizer, conversation, config.max_length, prepare.supervise == "last")
            if not item.supervised:
                raise ValueError(f"nothing of an answer within {config.max_length} tokens")
            if lost := vocabulary.missing(item.input_ids, beyond):
                raise ValueError(lost)
            encoded.append(item)
            notes.update(formats.notes(tokenizer, conversation, item.joined))
            texts.append(similarity.compared(conversation))
        except LeftOut:
            left_out += 1
        except (ValueError, InputError) as error:
            reasons.append((number, str(error)))
    if not encoded:
        first = "row {}: {}".format(*reasons[0]) if reasons else "all are marked as not trained"
        raise InputError(f"data {uri}: none of its first {len(rows)} rows can be used: {first}")
    # By what is compared, which is not quite what is hashed: so exact duplicates are told from near ones.
    ids = [hashlib.sha256(b"\n".join(text)).digest() for text in texts]
    near = duplicates.near_share(ids, texts, prepare.near_duplicate_threshold)
    return form, encoded, reasons, left_out, notes, near
