"""The first rows of the data, looked at and tokenised as training will see them: what there is to reckon with."""

import contextlib
import csv
import dataclasses
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

from components.core import chat, data_listing, forms, hub_data, models, storage
from components.core.config import RunConfig
from components.core.data_listing import DataFile
from components.core.errors import InputError

START = 1 << 18
"""Bytes of a data file that are read to look at its first rows."""
LARGEST_PARQUET = 64 << 20
"""Bytes up to which a Parquet file is fetched from S3 for that: its rows can only be found from its end."""
ROWS = 200
"""Rows that are tokenised."""


@dataclasses.dataclass(frozen=True)
class Start:
    """The first rows of a file, and how many rows it has in all as far as that can be told."""

    rows: list[dict[str, Any]]
    in_all: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows of one side reckoned from its first file; mean tokens of a row, and the share of them that is supervised."""

    rows: int
    tokens_a_row: float
    supervised: float


def look(source: dict[str, Any], config: RunConfig, tokenizer_files: Path) -> Sample | None:
    """Looks at the first file of one side.

    Args:
        source: of the listing.
        config: the whole run.
        tokenizer_files: folder of the base's tokenizer.

    Returns:
        None where the file can only be read whole: in hub data sets, compressed or large Parquet.

    Raises:
        InputError: the first rows are of no known form, or no rows.
    """
    file = data_listing.first_file(source)
    start = first_rows(file)
    if start is None:
        return None
    encoded = _encoded(start.rows[:ROWS], file.uri, config, tokenizer_files)
    if not encoded:
        return Sample(0, 0.0, 1.0)
    tokens = sum(len(item.input_ids) for item in encoded)
    rows = start.in_all * sum(entry[1] for entry in source["files"]) / file.entry.size
    return Sample(max(1, round(rows)), tokens / len(encoded), sum(item.supervised for item in encoded) / tokens)


def first_rows(file: DataFile) -> Start | None:
    """The whole rows at the start of a file, or None where it would have to be read whole.

    Raises:
        InputError: the first row is none.
    """
    name = file.entry.path.lower()
    if file.source.startswith(hub_data.PREFIX):
        return None
    if ".parquet" in name:
        large = storage.is_s3(file.uri) and file.entry.size > LARGEST_PARQUET
        return None if large or not name.endswith(".parquet") else _parquet(file)
    raw = storage.read_bytes(file.uri, START)
    text = _unpacked(raw, name).decode("utf-8-sig", errors="ignore")
    rows = _rows(text, name)
    if not rows or not isinstance(rows[0], dict):
        raise InputError(
            f"data {file.uri}: its first row is not a JSON object; see the README for the forms that are read"
        )
    rows = [row for row in rows if isinstance(row, dict)]
    read = sum(len(json.dumps(row)) for row in rows)
    return Start(rows, file.entry.size * len(text) / len(raw) * len(rows) / read)


def _parquet(file: DataFile) -> Start:
    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryDirectory() as folder:
        path = file.fetch(Path(folder))
        try:
            with pyarrow.parquet.ParquetFile(path) as opened:
                batch = next(opened.iter_batches(batch_size=ROWS), None)
                rows = batch.to_pylist() if batch else []
                in_all = opened.metadata.num_rows
        except (OSError, pyarrow.ArrowException):
            raise InputError(f"data {file.uri}: damaged, or not .parquet; write the file again") from None
    if not rows:
        raise InputError(f"data {file.uri}: it has no rows")
    return Start(rows, in_all)


def _unpacked(raw: bytes, name: str) -> bytes:
    """What the start of a file unpacks to; it may end anywhere."""
    if name.endswith(".gz"):
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(wbits=31).decompress(raw, START * 4)
        return b""
    if not name.endswith(".zst"):
        return raw
    import pyarrow

    found = b""
    with contextlib.suppress(OSError), pyarrow.CompressedInputStream(pyarrow.BufferReader(raw), "zstd") as stream:
        while len(found) < START * 4 and (part := stream.read(1 << 12)):
            found += part
    return found


def _rows(text: str, name: str) -> list[Any]:
    name = name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".csv"):
        return list(csv.DictReader(text.splitlines()))
    if name.endswith(".json"):
        return _elements(text)
    rows: list[Any] = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
            continue
        break  # the last line of a sample may be cut; a first line that is no JSON leaves no rows
    return rows


def _elements(text: str) -> list[Any]:
    """The whole elements at the start of a JSON array."""
    decoder = json.JSONDecoder()
    rows: list[Any] = []
    position = text.find("[") + 1
    while position:
        while position < len(text) and text[position] in " \r\n\t,":
            position += 1
        try:
            row, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            break
        rows.append(row)
    return rows


def _encoded(rows: list[dict[str, Any]], uri: str, config: RunConfig, files: Path) -> list[chat.Encoded]:
    """A file's first rows as they will be trained on; those that prepare_dataset will reject are left out.

    Raises:
        InputError: they are of no known form, so all will be rejected.
    """
    prepare = config.for_step("prepare_dataset")
    try:
        rows = [forms.renamed(row, prepare.columns) for row in rows]
    except ValueError as error:
        raise InputError(f"data {uri}: {error}") from None
    form = forms.most_common_form(rows) if prepare.form == "auto" else prepare.form
    if not form:
        columns = ", ".join(sorted(rows[0]))
        raise InputError(
            f"data {uri}: its rows are of no known form (columns {columns}); name theirs in options,"
            " prepare_dataset.columns"
        )
    tokenizer = models.load_tokenizer(files)
    encoded = []
    for row in rows:
        with contextlib.suppress(ValueError, InputError):
            found = forms.conversation(row, form)
            encoded.append(
                chat.encode(tokenizer, found.messages, config.max_length, tools=found.tools)
                if found.messages
                else chat.encode_spans(tokenizer, found.text, [(0, len(found.text))], config.max_length)
            )
    return encoded
