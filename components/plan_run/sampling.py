"""The first rows of the data, looked at and tokenised as training will see them: what there is to reckon with."""

import contextlib
import dataclasses
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import chat_template, formats, listing, readers
from qlora_pipelines.components.core.data.listing import DataFile
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading

START = 1 << 20
"""Bytes of a data file that are read to look at its first rows; more where they hold no whole row."""
ROWS = 200
"""Rows that are tokenised."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The first rows of a file, with their numbers, and how many rows it has in all as far as that can be told.

    `broken` says of the rows among them that hold none why not.
    """

    rows: list[tuple[int, dict[str, Any]]]
    broken: list[tuple[int, str]]
    in_all: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """What the first rows of one side's first file tell.

    Rows of the side as reckoned from them; a row's mean bytes of text and tokens, and the share of these that is
    supervised; how many were looked at and how many of them cannot be used, with the first reason.
    """

    form: str
    rows: int
    bytes_a_row: float
    tokens_a_row: float
    supervised: float
    looked_at: int
    unusable: int
    reason: str


def look(source: dict[str, Any], config: RunConfig, tokenizer_files: Path) -> Sample:
    """Looks at the first file of one side.

    Args:
        source: of the listing.
        config: the whole run.
        tokenizer_files: folder of the base's tokenizer.

    Raises:
        InputError: the first rows cannot be read, are of no known form, or none of them can be used.
    """
    file = listing.first_file(source)
    start = first_rows(file)
    form, encoded, reasons = _encoded(start.rows[:ROWS], file.uri, config, tokenizer_files)
    last = start.rows[:ROWS][-1][0]
    reasons = sorted([*reasons, *((number, why) for number, why in start.broken if number < last)])
    tokens = sum(len(item.input_ids) for item in encoded)
    rows = start.in_all * sum(entry[1] for entry in source["files"]) / file.entry.size
    return Sample(
        form=form,
        rows=max(1, round(rows)),
        bytes_a_row=sum(len(json.dumps(row, default=str)) for _, row in start.rows) / len(start.rows),
        tokens_a_row=tokens / len(encoded),
        supervised=sum(item.supervised for item in encoded) / tokens,
        looked_at=len(encoded) + len(reasons),
        unusable=len(reasons),
        reason="row {}: {}".format(*reasons[0]) if reasons else "",
    )


def first_rows(file: DataFile) -> Start:
    """The whole rows at the start of a file.

    Raises:
        InputError: there is none.
    """
    if ".parquet" in file.entry.path.lower():
        return _parquet(file)
    size = START
    while True:
        with file.open() as opened:
            data = opened.read(size)
        whole = len(data) >= file.entry.size
        rows, broken = _rows(data, file.uri, whole)
        if rows or whole or size > readers.LONGEST_LINE:
            break
        size *= 16
    if not rows:
        raise InputError(f"data {file.uri}: its first rows cannot be read; see the README for the kinds that are read")
    read = len(rows) + len(broken)
    return Start(rows, broken, read if whole else (read + 0.5) * file.entry.size / len(data))


def _rows(data: bytes, name: str, whole: bool) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, str]]]:
    """The rows at the start of a file, and why others hold none. Where it goes on, the last one may be cut."""
    rows: list[tuple[int, dict[str, Any]]] = []
    broken: list[tuple[int, str]] = []
    records = readers.records(io.BufferedReader(io.BytesIO(data)), name)
    with contextlib.nullcontext() if whole else contextlib.suppress(InputError):
        for number, record in records if whole else _but_the_last(records):
            try:
                rows.append((number, readers.decode(record)))
            except ValueError as error:
                broken.append((number, str(error)))
    return rows, broken


def _but_the_last(records: Iterator[readers.Record]) -> Iterator[readers.Record]:
    for one, _ in itertools.pairwise(records):
        yield one


def _parquet(file: DataFile) -> Start:
    """The first rows, and how many the file's own description says there are; a packed one is unpacked for that."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    in_all = 0
    with file.open() as opened:
        for number, row in readers.records(opened, file.uri):
            rows.append((number, readers.decode(row)))
            in_all = number
            if number == ROWS:
                break
        if file.uri.lower().endswith(".parquet"):
            with contextlib.suppress(OSError, pyarrow.ArrowException):
                in_all = pyarrow.parquet.read_metadata(opened).num_rows
    if not rows:
        raise InputError(f"data {file.uri}: it has no rows")
    return Start(rows, [], in_all)


def _encoded(
    rows: list[tuple[int, dict[str, Any]]], uri: str, config: RunConfig, files: Path
) -> tuple[str, list[chat_template.Encoded], list[tuple[int, str]]]:
    """A file's first rows as they will be trained on, their form, and why the others of them will be rejected.

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
    tokenizer = loading.load_tokenizer(files)
    encoded, reasons = [], []
    for number, row in rows:
        try:
            found = formats.conversation(formats.renamed(row, prepare.columns), form)
            item = formats.encode(tokenizer, found, config.max_length, prepare.supervise == "last")
            if not item.supervised:
                raise ValueError(f"nothing of an answer within {config.max_length} tokens")
            encoded.append(item)
        except (ValueError, InputError) as error:
            reasons.append((number, str(error)))
    if not encoded:
        raise InputError(
            f"data {uri}: none of its first {len(rows)} rows can be used: row {{}}: {{}}".format(*reasons[0])
        )
    return form, encoded, reasons
