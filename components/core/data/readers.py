"""Rows out of JSONL, JSON, CSV and Parquet files, plain or compressed, as a stream: a file need not fit in memory."""

import contextlib
import csv
import io
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qlora_pipelines.components.core.data.listing import KINDS
from qlora_pipelines.components.core.errors import InputError

Row = dict[str, Any]
Raw = bytes | Row | str
"""A row as it is in its file: a line of JSONL undecoded, a decoded row, or why there is none."""
Record = tuple[int, Raw]
LONGEST_LINE = 64 << 20
"""Bytes; a longer line is rejected unread, so that a file without line ends cannot fill the memory."""
NO_OBJECT = "not a JSON object with columns"


def records(source: Path | BinaryIO, name: str) -> Iterator[Record]:
    """The rows of one file as they are in it, each with its number from 1.

    Lines of JSONL are not decoded yet: `decode` does that, row by row and in any process.

    Args:
        source: the local file, or one that is open; Parquet must be seekable.
        name: for messages; its ending says what kind the file is and how it is compressed.

    Yields:
        JSONL: the line's number; JSON and Parquet: the row's number; CSV: the line on which the row ends.

    Raises:
        InputError: the file cannot be read further; names the file and how far it was read.
    """
    import ijson
    import pyarrow

    kind = next(kind for kind in KINDS if name.lower().removesuffix(".gz").removesuffix(".zst").endswith(kind))
    read = {".jsonl": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet}[kind]
    number = 0
    try:
        with _opened(source, name) as file:
            for number, row in read(file, name):
                yield number, row
    except InputError:
        raise
    # Each library raises its own types on a damaged file; their texts may quote the data.
    except (OSError, ValueError, csv.Error, ijson.JSONError, pyarrow.ArrowException):
        what = "compressed data cut short or damaged" if _compression(name) else f"damaged, or not {kind}"
        raise InputError(f"data {name}: {what} after row {number}; write the file again") from None


def _compression(name: str) -> str:
    return {".gz": "gzip", ".zst": "zstd"}.get(Path(name.lower()).suffix, "")


@contextlib.contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    import pyarrow

    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        if _compression(name):
            # Unlike the bindings of zstd, pyarrow raises an error when a stream was cut short.
            stream = stack.enter_context(pyarrow.input_stream(file, compression=_compression(name)))
            file = stack.enter_context(io.BufferedReader(stream, 1 << 14))
            if ".parquet" in Path(name.lower()).suffixes:  # Parquet is read from its end
                whole = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, whole, 1 << 20)
                file = whole
        yield file


def _lines(file: BinaryIO, name: str) -> Iterator[Record]:
    for number in itertools.count(1):
        if not (line := file.readline(LONGEST_LINE)):
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, f"the line is longer than {LONGEST_LINE >> 20} MiB"
        elif line.strip():
            yield number, line


def decode(record: Raw) -> Row:
    """The row a record holds.

    Raises:
        ValueError: why it holds none.
    """
    import orjson

    if isinstance(record, str):
        raise ValueError(record)
    if not isinstance(record, bytes):
        return record
    try:
        try:
            row = orjson.loads(record)
        except orjson.JSONDecodeError:
            row = json.loads(record.decode())  # also reads NaN, and numbers of more than 64 bits
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError:
        ending = "" if record.endswith(b"\n") else "; the file ends in the middle of this line"
        raise ValueError(f"not JSON{ending}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(NO_OBJECT)
    return row


def _json(file: BinaryIO, name: str) -> Iterator[Record]:
    import ijson

    if file.peek(3).startswith(b"\xef\xbb\xbf"):  # type: ignore[attr-defined]
        file.read(3)
    if file.peek(64).lstrip()[:1] != b"[":  # type: ignore[attr-defined]
        raise InputError(f"data {name}: a .json file must hold one list of rows; one row a line is .jsonl")
    for number, row in enumerate(ijson.items(file, "item", use_float=True), 1):
        yield number, row if isinstance(row, dict) else NO_OBJECT


def _csv(file: BinaryIO, name: str) -> Iterator[Record]:
    csv.field_size_limit(LONGEST_LINE)
    # What is not UTF-8 becomes lone surrogates, which UTF-8 cannot encode: so only that row is rejected, later.
    reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""), strict=True)
    columns = next(reader, [])
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(f"data {name}: two columns are called {column}; rename one")
    for cells in reader:
        if len(cells) == len(columns):
            yield reader.line_num, dict(zip(columns, cells, strict=True))
        elif cells:
            yield reader.line_num, f"{len(cells)} cells in a file of {len(columns)} columns"


def _parquet(file: BinaryIO, name: str) -> Iterator[Record]:
    import pyarrow.parquet

    # Page by page: a row group, which may be the whole file, need not fit in memory.
    opened = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    batches = opened.iter_batches(batch_size=256)
    yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
