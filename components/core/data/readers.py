"""Rows out of files of all kinds, plain, compressed or in an archive, as a stream: a file need not fit in memory."""

import contextlib
import csv
import io
import itertools
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from qlora_pipelines.components.core.data import archives, arrow_rows
from qlora_pipelines.components.core.data.listing import ARCHIVE, DOCUMENTS, TABLES, kind_of
from qlora_pipelines.components.core.errors import InputError

Row = dict[str, Any]
Raw = bytes | Row | str
"""A row as it is in its file: a line of JSONL undecoded, a decoded row, or why there is none."""
Record = tuple[int, Raw]
LONGEST_LINE = 64 << 20
"""Bytes; a longer line is rejected unread, so that a file without line ends cannot fill the memory."""
EXPANDS_FREELY, MOST_EXPANSION = 1 << 30, 500
"""Bytes, and times its compressed size, to which a file may expand; beyond both it is refused."""
NO_OBJECT = "not a JSON object with columns"


def files(source: Path | BinaryIO, name: str) -> Iterator[tuple[str, Iterator[Record]]]:
    """The files in one file, which is one itself or an archive of several, each with its name and its rows.

    The rows of one must be read before the next one is asked for; else as `records`.
    """
    if kind_of(name) != ARCHIVE:
        yield name, records(source, name)
        return
    with _errors(name, "an archive", lambda: 0), _opened(source, name) as archive:
        documents = None
        for path, file in archives.members(archive, name):
            inside, kind = f"{name}/{path}", kind_of(path)
            if kind not in (*TABLES, *DOCUMENTS) or documents not in (None, kind in DOCUMENTS):
                raise InputError(
                    f"data {inside}: this kind is not read in an archive; put {', '.join(TABLES)} into one, or"
                    f" {' and '.join(DOCUMENTS)}, plain or compressed"
                )
            documents = kind in DOCUMENTS
            yield inside, records(file, inside)


def records(source: Path | BinaryIO, name: str) -> Iterator[Record]:
    """The rows of one file as they are in it, each with its number from 1; see `files` for archives.

    Lines of JSONL are not decoded yet: `decode` does that, row by row and in any process.

    Args:
        source: the local file, or one that is open; Parquet and Arrow must be seekable, if not within an archive.
        name: for messages; its ending says what kind the file is and how it is compressed.

    Yields:
        JSONL: the line's number; JSON, Parquet and Arrow: the row's number; CSV: the line on which the row ends.

    Raises:
        InputError: the file cannot be read further; names the file and how far it was read.
    """
    kind = kind_of(name)
    read = {".jsonl": _lines, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}.get(kind, _document)
    number = 0
    with _errors(name, kind, lambda: number), _opened(source, name) as file:
        for number, row in read(file, name):
            yield number, row


@contextlib.contextmanager
def _errors(name: str, kind: str, read: Callable[[], int]) -> Iterator[None]:
    """Each library raises its own types on a damaged file; their texts may quote the data."""
    import ijson
    import pyarrow

    try:
        yield
    except (OSError, EOFError, ValueError, csv.Error, ijson.JSONError, pyarrow.ArrowException, lzma.LZMAError,
            tarfile.TarError):  # fmt: skip
        what = "compressed data cut short or damaged" if _compression(name) else f"damaged, or not {kind}"
        raise InputError(f"data {name}: {what} after row {read()}; write the file again") from None


def _compression(name: str) -> str:
    return {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}.get(Path(name.lower()).suffix, "")


@contextlib.contextmanager
def _opened(source: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    import pyarrow

    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        if compression := _compression(name):
            # Unlike the bindings of zstd, pyarrow raises an error when a stream was cut short. It has no xz.
            opened = lzma.open if compression == "xz" else partial(pyarrow.input_stream, compression=compression)
            bounded = _Bounded(stack.enter_context(opened(file)), file, name)
            file = stack.enter_context(io.BufferedReader(bounded, 1 << 14))
        # Parquet is read from its end, Arrow in places.
        if kind_of(name) in (".parquet", ".arrow") and (compression or isinstance(file, tarfile.ExFileObject)):
            whole = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, whole, 1 << 20)
            whole.seek(0)
            file = whole
        yield file


class _Bounded(io.RawIOBase):
    """A decompressed stream; data that a few bytes stand for without end is refused."""

    def __init__(self, stream: Any, compressed: BinaryIO, name: str) -> None:
        self._stream, self._compressed, self._name, self._read = stream, compressed, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = int(self._stream.readinto(buffer))
        self._read += size
        if self._read > EXPANDS_FREELY and self._read > MOST_EXPANSION * self._compressed.tell():
            raise InputError(f"data {self._name}: it expands to over {MOST_EXPANSION} times its size; is it data?")
        return size


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
    yield from enumerate(arrow_rows.parquet(file), 1)


def _arrow(file: BinaryIO, name: str) -> Iterator[Record]:
    yield from enumerate(arrow_rows.arrow(file), 1)


def _document(file: BinaryIO, name: str) -> Iterator[Record]:
    text = file.read(LONGEST_LINE + 1)
    if len(text) > LONGEST_LINE:
        yield 1, f"the document is longer than {LONGEST_LINE >> 20} MiB"
        return
    try:
        yield 1, {"text": text.removeprefix(b"\xef\xbb\xbf").decode()}
    except UnicodeDecodeError:
        yield 1, "not UTF-8"
