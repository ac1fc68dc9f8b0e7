"""Rows out of Parquet and Arrow files as JSON would have written them.

A column of structs has every field in every row: a field that one row lacks is null there. JSON would not have it, so
such nulls are left out, at any depth, and a tool's schema or a call's arguments read the same from every kind of file.
What these formats can tell apart stays: nulls in lists, in maps, and in columns of JSON.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BATCH = 256
"""Rows that are made into Python objects at a time."""

Clean = Callable[[Any], Any]


def parquet(file: Any) -> Iterator[Any]:
    """The rows of a Parquet file, page by page: a row group, which may be the whole file, need not fit in memory."""
    import pyarrow.parquet

    opened = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
    yield from rows(opened.schema_arrow, opened.iter_batches(batch_size=BATCH))


def arrow(file: Any) -> Iterator[Any]:
    """The rows of an Arrow file, or of an Arrow stream, which is what `datasets` writes into `.arrow` files."""
    import pyarrow as pa

    start = file.read(6)
    file.seek(0)
    opened = pa.ipc.open_file(file) if start == b"ARROW1" else pa.ipc.open_stream(file)
    batches = (
        (opened.get_batch(number) for number in range(opened.num_record_batches)) if start == b"ARROW1" else opened
    )
    yield from rows(opened.schema, _checked(batches))


def count(file: Any, size: int) -> int:
    """About how many rows an Arrow file or stream of so many bytes has, by its first batch."""
    import pyarrow as pa

    file.seek(0)
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_file:
        opened = pa.ipc.open_file(file)
        batches = opened.num_record_batches
        # All but the last one are of the same length.
        return int(opened.get_batch(0).num_rows * max(batches - 0.5, 1)) if batches else 0
    first = pa.ipc.open_stream(file).read_next_batch().num_rows
    return int(first * size / file.tell())


def _checked(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        # A damaged batch would make Arrow read outside its memory.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH):
            yield batch.slice(start, BATCH)


def rows(schema: Any, batches: Iterable[Any]) -> Iterator[dict[str, Any] | str]:
    """Each row of some batches, or why there is none.

    A column that is null in a row is None there: it is the table's, whatever the row holds.

    Args:
        schema: of the batches.
        batches: Arrow's RecordBatches.
    """
    cleaners = {field.name: clean for field in schema if (clean := _cleaner(field.type))}
    for batch in batches:
        for row in batch.to_pylist():
            try:
                for name, clean in cleaners.items():
                    if row[name] is not None:
                        row[name] = clean(row[name])
            except (ValueError, RecursionError) as error:
                yield str(error) if type(error) is ValueError else "holds JSON that cannot be read"
                continue
            yield row


def _cleaner(kind: Any) -> Clean | None:
    """What to do with a value of a type that is not null; None: it stays as it is."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.JsonType):  # as `datasets` keeps what differs from row to row
        return _parsed
    if types.is_struct(kind):
        return functools.partial(_struct, {field.name: _cleaner(field.type) for field in kind})
    if types.is_map(kind):
        return functools.partial(_map, _cleaner(kind.item_type))
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return _cleaner(kind.value_type)
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    if any(is_list(kind) for is_list in lists) and (clean := _cleaner(kind.value_type)):
        return functools.partial(_list, clean)
    return None


def _parsed(value: Any) -> Any:
    return json.loads(value)


def _struct(cleaners: dict[str, Clean | None], value: dict[str, Any]) -> dict[str, Any]:
    present = ((name, inner, cleaners[name]) for name, inner in value.items() if inner is not None)
    return {name: clean(inner) if clean else inner for name, inner, clean in present}


def _map(clean: Clean | None, value: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = {key: inner if clean is None or inner is None else clean(inner) for key, inner in value}
    if len(made) < len(value):
        raise ValueError("holds a map that has a key twice")
    return made


def _list(clean: Clean, value: list[Any]) -> list[Any]:
    return [None if inner is None else clean(inner) for inner in value]
