"""A chunk of rows, prepared: what one process does at a time."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import formats, minhash, readers, similarity, tokenized
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.data.listing import DataFile
from qlora_pipelines.components.core.data.minhash import PERMUTATIONS, Sets, shingles
from qlora_pipelines.components.core.data.row_keys import Reading
from qlora_pipelines.components.core.data.turns import LeftOut, RowError
from qlora_pipelines.components.core.models import vocabulary
from qlora_pipelines.components.prepare_dataset.encoding import Encoder, Row

CHUNK_ROWS = 500
CHUNK_BYTES = 8 << 20
"""A chunk ends at either, so that the result does not depend on the number of processes.

500 rows of 1.5 kB are 0.75 MB of text. The arrays that `minhash` makes of it have one byte per byte of text and still
fit a core's cache, and the fixed cost of a call to numpy, fastokens or rensa is spread over many rows. Long rows end a
chunk by bytes, which bounds memory.
"""

NO_SETS = Sets(np.zeros(0, np.uint32), np.zeros(1, np.int64))
NO_JSON = "holds a value that JSON has no form for"

Records = list[readers.Record]
Content = tuple[bytes, ...]
Extra = dict[str, Any]


class Chunk(NamedTuple):
    """Rows of one file as they were read, each with its number."""

    file: str
    form: str
    held_out: bool
    records: Records


class Rejected(NamedTuple):
    """A row that is not used: its number, why, where in the row that is, its own id, and whether it asks for it."""

    line: int
    reason: str
    key: str = ""
    id: str = ""
    left_out: bool = False


class Prepared(NamedTuple):
    """What became of a chunk.

    Attributes:
        rows: a RecordBatch of `staged_schema()`.
        ids: sha256 of each conversation, of shape (rows, 32).
        sets: the rows' shingles, by which near duplicates are found; none where only exact ones are looked for.
        signatures: MinHash signatures, of shape (rows, PERMUTATIONS); zeros there.
        ngrams: hashes of the rows' n-grams and the offsets of each row's; None without decontamination.
        rejected: the rows that are not used.
        notes: what of a used row is not used as one might expect, with the row's number.
        extra: which of the extra columns a row has.
        slow: fastokens gave other ids than the tokenizer on the chunk's first row, and so was not used on the chunk.
    """

    rows: Any
    ids: NDArray[np.uint8]
    sets: Sets
    signatures: NDArray[np.uint32]
    ngrams: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None
    rejected: list[Rejected]
    notes: list[tuple[str, int]]
    extra: set[str]
    slow: bool


def staged_schema() -> Any:
    """Rows between the passes: `spans` holds start and end of each supervised run of ids, `tokens` the uncut length."""
    import pyarrow as pa

    ids = pa.list_(pa.field("element", pa.int32()))
    text = dict.fromkeys(tokenized.TEXTS, pa.string())
    return pa.schema({"id": pa.string(), "input_ids": ids, "spans": ids, "tokens": pa.int32()} | text)


def chunks(file: DataFile, path: Path, held_out: bool, config: PrepareConfig) -> Iterator[Chunk]:
    """One file in chunks. The form of most of the first chunk's rows is the file's; in an archive each has its own."""
    for name, found in readers.files(path, file.uri):
        form: str = "" if config.form == "auto" else config.form
        for records in _chunked(found):
            form = form or formats.most_common_form(_decoded(records, config.columns))
            yield Chunk(name, form, held_out, records)


def _chunked(records: Iterator[readers.Record]) -> Iterator[Records]:
    chunk: Records = []
    size = 0
    for number, record in records:
        chunk.append((number, record))
        size += len(record) if isinstance(record, bytes) else _size(record)
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(value: Any) -> int:
    """About how many bytes of text a decoded row holds; a number or null counts as 8."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 8


def _decoded(records: Records, columns: dict[Any, str]) -> Iterator[readers.Row]:
    for _, record in records:
        with contextlib.suppress(ValueError):
            yield formats.renamed(readers.decode(record), columns)


def conversations(chunk: Chunk, config: PrepareConfig, encoder: Encoder) -> Iterator[Conversation]:
    """The usable conversations of a chunk."""
    reading = _reading(config, encoder)
    for _, record in chunk.records:
        with contextlib.suppress(ValueError):
            yield _parse(readers.decode(record), chunk.form, config, reading)[0]


def _parse(row: readers.Row, form: str, config: PrepareConfig, reading: Reading) -> tuple[Conversation, Content, Extra]:
    row = formats.renamed(row, config.columns)
    try:
        conversation = formats.conversation(row, form, reading)
        (conversation.group + conversation.slice).encode()
        return conversation, _content(conversation), {name: row.get(name) for name in config.extra_columns}
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def _reading(config: PrepareConfig, encoder: Encoder) -> Reading:
    return Reading(config.consecutive_turns, encoder.variables, frozenset(config.extra_columns))


def prepare(chunk: Chunk, config: PrepareConfig, encoder: Encoder) -> Prepared:
    """Turns a chunk's rows into token ids, spans, hashes and signatures; each row comes out or is rejected."""
    rejected: list[Rejected] = []
    parsed: list[tuple[int, Conversation, Content, Extra]] = []
    names: dict[int, str] = {}
    reading = _reading(config, encoder)
    for number, record in chunk.records:
        row: readers.Row = {}
        try:
            row = readers.decode(record)
            parsed.append((number, *_parse(row, chunk.form, config, reading)))
            names[number] = _own_id(row)
        except ValueError as error:
            key = error.key if isinstance(error, RowError) else ""
            rejected.append(Rejected(number, str(error), key, _own_id(row), isinstance(error, LeftOut)))
    texts = [similarity.compared(conversation) for _, conversation, *_ in parsed]
    signing = _signed(texts) if config.near_duplicate_threshold else None
    encoded, slow = encoder.encode_checked([conversation for _, conversation, *_ in parsed])
    kept, rows, notes = [], [], []
    for place, (made, (number, conversation, content, extra)) in enumerate(zip(encoded, parsed, strict=True)):
        if isinstance(made, str) or (unused := _unusable(made, config.max_length, encoder.beyond)):
            rejected.append(Rejected(number, made if isinstance(made, str) else unused, id=names[number]))
        else:
            kept.append(place)
            rows.append((hashlib.sha256(b"\n".join(content)), made, extra, content, conversation))
            notes += [(note, number) for note in formats.notes(encoder.tokenizer, conversation, made.joined)]
    words = config.decontaminate_words
    sets, signatures = signing if signing else (NO_SETS, np.zeros((len(parsed), PERMUTATIONS), np.uint32))
    return Prepared(
        rows=_staged(rows),
        ids=np.frombuffer(b"".join(sha256.digest() for sha256, *_ in rows), np.uint8).reshape(-1, 32),
        sets=sets.only(np.array(kept, np.int64)) if signing else sets,
        signatures=signatures[kept],
        ngrams=shingles([_text(parsed[place][1]) for place in kept], words) if words else None,
        rejected=sorted(rejected),
        notes=notes,
        extra={name for *_, extra in parsed for name, value in extra.items() if value is not None},
        slow=slow,
    )


def _own_id(row: readers.Row) -> str:
    """The id that a row gives itself, for people who look for it in their data."""
    found = next((row[key] for key in ("id", "uuid", "prompt_id") if isinstance(row.get(key), str | int)), "")
    return str(found)[:200]


def _signed(texts: list[tuple[bytes, bytes]]) -> tuple[Sets, NDArray[np.uint32]]:
    sets = minhash.sets(texts)
    return sets, minhash.signatures_of(sets)


def _content(conversation: Conversation) -> Content:
    """Messages, tools and settings as JSON, in the order in which the template will see them; their hash is the id."""
    calls_tools = any("tool_calls" in message for message in conversation.messages)
    tools = _json_of_any(conversation.tools) if conversation.tools else b""
    if not conversation.messages:
        return _json(conversation.text), tools
    messages = (_json_of_any if calls_tools else _json)(conversation.messages)
    return (messages, tools, _json_of_any(conversation.settings)) if conversation.settings else (messages, tools)


def _json_of_any(value: Any) -> bytes:
    """As `_json`, of what may hold more than text: what is written must be read back as the template sees it now."""
    written = _json(value)
    if json.loads(written) != value:  # a date, NaN
        raise ValueError(NO_JSON)
    return written


def _json(value: Any) -> bytes:
    import orjson

    with contextlib.suppress(TypeError):
        return bytes(orjson.dumps(value))
    try:
        return json.dumps(value, ensure_ascii=False).encode()  # numbers of more than 64 bits
    except TypeError:
        raise ValueError(NO_JSON) from None


def _unusable(row: Row, max_length: int, beyond: dict[int, str]) -> str:
    if lost := vocabulary.missing(row.ids.tolist(), beyond) if beyond else "":
        return lost
    # The first token is never supervised: nothing predicts it.
    if sum(end - max(start, 1) for start, end in row.spans) > 0:
        return ""
    return f"nothing of an answer within {max_length} tokens" if row.tokens > max_length else "nothing to supervise"


def _text(conversation: Conversation) -> bytes:
    """The text in which runs of words are looked for: without the system prompt, which many rows share."""
    if not conversation.messages:
        return conversation.text.encode()
    parts = [message["content"] for message in conversation.messages if message["role"] not in ("system", "developer")]
    calls = [_json(message["tool_calls"]).decode() for message in conversation.messages if "tool_calls" in message]
    return "\n".join(parts + calls).encode()


def _staged(rows: list[tuple[Any, Any, Extra, Content, Conversation]]) -> Any:
    import pyarrow as pa

    # What there is of messages, tools and settings of each row; plain text has none.
    parts = [
        [*content, b"", b""][:3] if conversation.messages else [b"[]", b"", b""] for *_, content, conversation in rows
    ]

    bounds = [np.array([*itertools.chain(*row.spans)], np.int32) for _, row, *_ in rows]
    columns = {
        "id": _texts([sha256.hexdigest().encode() for sha256, *_ in rows]),
        "input_ids": _lists([row.ids for _, row, *_ in rows]),
        "spans": _lists(bounds),
        "tokens": tokenized.to_arrow(np.array([row.tokens for _, row, *_ in rows], np.int32)),
        "messages": _texts([messages for messages, _, _ in parts]),
        "tools": _texts([tools for _, tools, _ in parts]),
        "chat_template_kwargs": _texts([settings for *_, settings in parts]),
        "group": _texts([conversation.group.encode() for *_, conversation in rows]),
        "slice": _texts([conversation.slice.encode() for *_, conversation in rows]),
        # What JSON has no form for, such as a date, is text there.
        "extra": _texts([json.dumps(extra, default=str).encode() if extra else b"" for _, _, extra, *_ in rows]),
    }
    schema = staged_schema()
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _texts(values: list[bytes]) -> Any:
    """A column of UTF-8. From Python's lists Arrow makes it more slowly, and imports pandas for that."""
    import pyarrow as pa

    return pa.StringArray.from_buffers(len(values), pa.py_buffer(_offsets(values)), pa.py_buffer(b"".join(values)))


def _lists(values: list[NDArray[np.int32]]) -> Any:
    import pyarrow as pa

    flat = np.concatenate([np.zeros(0, np.int32), *values])
    return pa.ListArray.from_arrays(tokenized.to_arrow(_offsets(values)), tokenized.to_arrow(flat))


def _offsets(values: Sequence[Sized]) -> NDArray[np.int32]:
    return np.cumsum([0, *map(len, values)], dtype=np.int32)
