"""The tokenised sets that pass between steps: one Parquet file per side, verified by whoever reads it."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.core.store import keys, local_files

TEXTS = ("messages", "tools", "chat_template_kwargs", "group", "slice", "extra")
"""Columns of text."""
ROW_GROUP = 10_000
"""Rows per row group: what reading and writing keep in memory at a time.

10,000 rows of 500 tokens are 40 MB of ids and labels of 4 bytes each.
"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A kept row; `id` is the sha256 of its conversation.

    A row of plain text has no messages. `group` and `slice` are the row's own, for the evaluation's scores, and so
    are the `extra` columns; `settings` are its variables of the chat template.
    """

    id: str
    messages: list[chat_template.Message]
    encoded: chat_template.Encoded
    tools: chat_template.Tools = dataclasses.field(default_factory=list)
    group: str = ""
    slice: str = ""
    settings: chat_template.Settings = dataclasses.field(default_factory=dict)
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def schema() -> Any:
    """The Arrow schema of a side: token ids and labels of shape (tokens,), and `TEXTS`, JSON where not plain."""
    import pyarrow as pa

    ids = pa.list_(pa.field("element", pa.int32()))
    columns = {"id": pa.string(), "input_ids": ids, "labels": ids}
    return pa.schema(columns | dict.fromkeys(TEXTS, pa.string()))


def to_arrow(values: Any) -> Any:
    """An Arrow array over a numpy array of int32, which is not copied. `pyarrow.array` would import pandas for it."""
    import pyarrow as pa

    return pa.Array.from_buffers(pa.int32(), len(values), [None, pa.py_buffer(values)])


def to_numpy(values: Any) -> Any:
    """A numpy array over an Arrow array of int32 without nulls, as `to_arrow` the other way."""
    import numpy as np

    content = values.buffers()[1]
    return np.frombuffer(content or b"", np.int32)[values.offset : values.offset + len(values)]


class Digest:
    """sha256 over columns, each as one stream of lengths and one of values, so that it does not depend on batches.

    With the lengths, rows that are cut differently (`ab`, `c` and `a`, `bc`) have different digests.
    """

    def __init__(self) -> None:
        """See the class."""
        self._streams = {name: (hashlib.sha256(), hashlib.sha256()) for name in schema().names}

    def update(self, batch: Any) -> None:
        """Adds the next rows, a RecordBatch of `schema()`."""
        import numpy as np

        for name, (lengths, values) in self._streams.items():
            column = batch.column(name)
            if len(column) == 0:
                continue
            offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
            lengths.update(np.diff(offsets).tobytes())
            if name in ("input_ids", "labels"):
                values.update(to_numpy(column.flatten()))
            else:
                values.update(memoryview(column.buffers()[2] or b"")[offsets[0] : offsets[-1]])

    def hexdigest(self) -> str:
        """The digest of all rows so far."""
        return keys.digest([[stream.hexdigest() for stream in pair] for pair in self._streams.values()])


class Writer:
    """Writes all sides of a data set, batch by batch; the files appear under their names at the end, all or none.

    Args:
        paths: by side, the Parquet file to write.
        tokenizer: digest of the tokenizer that made the ids.
    """

    def __init__(self, paths: dict[str, str], tokenizer: str = "") -> None:
        """See the class."""
        import pyarrow.parquet

        self._tokenizer = tokenizer
        self._stack = contextlib.ExitStack()
        self._digests = {side: Digest() for side in paths}
        self._batches: dict[str, list[Any]] = {side: [] for side in paths}
        self._executor = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None
        # The high bytes of token ids are nearly all 0. Stored byte by byte (all first bytes, then all second ones, ...)
        # they compress as well as with any other encoding, and fastest.
        encoding = {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("input_ids", "labels")}
        self._files: dict[str, Any] = {}
        for side, path in paths.items():
            unfinished = self._stack.enter_context(local_files.replacing(Path(path)))
            writer = pyarrow.parquet.ParquetWriter(
                unfinished, schema(), compression="zstd", use_dictionary=["group", "slice"], column_encoding=encoding
            )
            self._files[side] = self._stack.enter_context(writer)

    def __enter__(self) -> "Writer":
        """Ready to write."""
        return self

    def write(self, side: str, batch: Any) -> None:
        """Appends rows, a RecordBatch of `schema()`, to a side."""
        self._digests[side].update(batch)
        self._batches[side].append(batch)
        if sum(batch.num_rows for batch in self._batches[side]) >= ROW_GROUP:
            self._flush(side)

    def _flush(self, side: str) -> None:
        import pyarrow as pa

        if self._batches[side]:
            table = pa.Table.from_batches(self._batches[side])
            self._batches[side] = []
            self._wait()
            # Compressing a row group takes as long as the rest, and not the interpreter's lock: so it runs in a thread.
            self._writing = self._executor.submit(self._files[side].write_table, table, table.num_rows)

    def _wait(self) -> None:
        """Waits for the row group that is being written, so that there is one at a time, and errors are raised."""
        if self._writing:
            self._writing.result()

    def close(self) -> str:
        """Finishes the files, which take their names when the block ends; returns the `dataset_digest`."""
        digests = {side: digest.hexdigest() for side, digest in self._digests.items()}
        for side, file in self._files.items():
            self._flush(side)
            self._wait()
            file.add_key_value_metadata(
                {"side": side, "digests": json.dumps(digests, sort_keys=True), "tokenizer": self._tokenizer}
            )
            file.close()
        return keys.digest(digests)

    def __exit__(self, *error: Any) -> None:
        """Gives the files their names, or deletes what is unfinished."""
        self._executor.shutdown()
        self._stack.__exit__(*error)


def read(path: str, dataset_digest: str) -> list[Sample]:
    """The samples of one side.

    Raises:
        InputError: the file is not of the data set with this digest, or was altered.
    """
    import pyarrow
    import pyarrow.parquet

    altered = InputError(f"data set {path}: its content is not that of dataset_digest {dataset_digest[:12]}")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.schema_arrow.remove_metadata() != schema():
                raise altered
            digest = Digest()
            samples: list[Sample] = []
            for batch in file.iter_batches(batch_size=ROW_GROUP):
                digest.update(batch)
                samples += _samples(batch)
            metadata = file.metadata.metadata or {}
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"data set {path}: {first_line(error)}") from None
    digests = json.loads(metadata.get(b"digests", b"{}"))
    side = metadata.get(b"side", b"").decode()
    if keys.digest(digests) != dataset_digest or digests.get(side) != digest.hexdigest():
        raise altered
    return samples


def tokenizer_digest(path: str) -> str:
    """Digest of the tokenizer that made a file's ids, as `models.tokenizer_digest` gives it; '' where it says none."""
    return _metadata(path, b"tokenizer")


def side(path: str) -> str:
    """Which side of a data set a file is that `read` has read: `train` or `eval`."""
    return _metadata(path, b"side")


def _metadata(path: str, name: bytes) -> str:
    import pyarrow.parquet

    return bytes((pyarrow.parquet.read_metadata(path).metadata or {}).get(name, b"")).decode()


def _samples(batch: Any) -> Iterator[Sample]:
    for row in batch.to_pylist():
        yield Sample(
            row["id"],
            json.loads(row["messages"]),
            chat_template.Encoded(row["input_ids"], row["labels"]),
            json.loads(row["tools"] or "[]"),
            row["group"],
            row["slice"],
            json.loads(row["chat_template_kwargs"] or "{}"),
            json.loads(row["extra"] or "{}"),
        )
