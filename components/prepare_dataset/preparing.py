"""A chunk of rows, prepared: what one process does at a time, and the processes that do it."""

import collections
import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import formats, readers
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.data.listing import DataFile
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.runtime import quiet_libraries
from qlora_pipelines.components.prepare_dataset.encoding import Encoder, Row
from qlora_pipelines.components.prepare_dataset.minhash import PERMUTATIONS, shingles, signatures

CHUNK_ROWS = 500
CHUNK_BYTES = 8 << 20
"""A chunk ends at either, whatever the number of processes; arrays of so many rows still fit the cache."""

NO_JSON = "holds a value that JSON has no form for"

Records = list[readers.Record]
Content = tuple[bytes, bytes]


class Chunk(NamedTuple):
    """Rows of one file as they were read, each with its number."""

    file: str
    form: str
    held_out: bool
    records: Records


class Prepared(NamedTuple):
    """What became of a chunk.

    `rows` is a RecordBatch of `staged_schema()`, `ids` and `signatures` are those of `duplicates.Index.add`, `runs` the
    hashes of the rows' runs of words with the offsets of each row's, where evaluation rows are sought in them. `slow`
    says whether fastokens gave other ids than the tokenizer on the chunk's first row, and so was not used on it.
    """

    rows: Any
    ids: NDArray[np.uint8]
    signatures: NDArray[np.uint32]
    runs: tuple[NDArray[np.uint64], NDArray[np.uint64]] | None
    rejected: list[tuple[int, str]]
    slow: bool


def staged_schema() -> Any:
    """Rows between the passes: `spans` holds start and end of each supervised run of ids, `tokens` the uncut length."""
    import pyarrow as pa

    ids = pa.list_(pa.field("element", pa.int32()))
    text = dict.fromkeys(("messages", "tools", "group", "slice"), pa.string())
    return pa.schema({"id": pa.string(), "input_ids": ids, "spans": ids, "tokens": pa.int32()} | text)


def chunks(file: DataFile, path: Path, held_out: bool, config: PrepareConfig) -> Iterator[Chunk]:
    """One file in chunks. The form of most of the first chunk's rows is the file's."""
    form: str = "" if config.form == "auto" else config.form
    for records in _grouped(readers.records(path, file.uri)):
        form = form or formats.most_common_form(row for _, row in _decoded(records, config.columns))
        yield Chunk(file.uri, form, held_out, records)


def _grouped(records: Iterator[readers.Record]) -> Iterator[Records]:
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
    """About how many bytes of text a decoded row holds."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else len(value) if isinstance(value, str) else 8


def _decoded(records: Records, columns: dict[Any, str]) -> Iterator[tuple[int, readers.Row]]:
    for number, record in records:
        with contextlib.suppress(ValueError):
            yield number, formats.renamed(readers.decode(record), columns)


def sample(chunk: Chunk, config: PrepareConfig, rows: int) -> list[Conversation]:
    """The first usable conversations of a chunk."""
    found = []
    for _, record in chunk.records:
        with contextlib.suppress(ValueError):
            found.append(_read(record, chunk.form, config)[0])
        if len(found) == rows:
            break
    return found


def _read(record: readers.Raw, form: str, config: PrepareConfig) -> tuple[Conversation, Content]:
    row = formats.renamed(readers.decode(record), config.columns)
    try:
        conversation = formats.conversation(row, form)
        (conversation.group + conversation.slice).encode()
        return conversation, _content(conversation)
    except UnicodeEncodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def prepare(chunk: Chunk, config: PrepareConfig, encoder: Encoder) -> Prepared:
    """Turns a chunk's rows into token ids, spans, hashes and signatures; each row comes out or is rejected."""
    rejected, numbers, conversations, contents = [], [], [], []
    for number, record in chunk.records:
        try:
            conversation, content = _read(record, chunk.form, config)
        except ValueError as error:
            rejected.append((number, str(error)))
            continue
        numbers.append(number)
        conversations.append(conversation)
        contents.append(content)
    words = [_words(conversation) for conversation in conversations]
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        # numpy and rensa work without the interpreter's lock, while the templates hold it.
        signing = beside.submit(signatures, words) if config.near_duplicate_threshold else None
        encoded, slow = encoder.encode_checked(conversations)
    kept = []
    for place, row_or_reason in enumerate(encoded):
        reason = row_or_reason if isinstance(row_or_reason, str) else _unsupervised(row_or_reason, config.max_length)
        if reason:
            rejected.append((numbers[place], reason))
        else:
            kept.append(place)
    ids = [hashlib.sha256(contents[place][0] + b"\n" + contents[place][1]) for place in kept]
    return Prepared(
        rows=_staged([(ids[i].hexdigest(), encoded[p], contents[p], conversations[p]) for i, p in enumerate(kept)]),
        ids=np.frombuffer(b"".join(found.digest() for found in ids), np.uint8).reshape(-1, 32),
        signatures=signing.result()[kept] if signing else np.zeros((len(kept), PERMUTATIONS), np.uint32),
        runs=shingles([words[place] for place in kept], config.decontaminate_words)
        if config.decontaminate_words
        else None,
        rejected=sorted(rejected),
        slow=slow,
    )


def _content(conversation: Conversation) -> Content:
    """Messages and tools as JSON, in the order in which the template will see them; what the row is known by."""
    calls_tools = any("tool_calls" in message for message in conversation.messages)
    tools = _json_of_any(conversation.tools) if conversation.tools else b""
    if not conversation.messages:
        return _json(conversation.text), tools
    return (_json_of_any if calls_tools else _json)(conversation.messages), tools


def _json_of_any(value: Any) -> bytes:
    """As `_json`, of what may hold more than text: what is written must read back as the template sees it now."""
    written = _json(value)
    if json.loads(written) != value:  # a date, NaN
        raise ValueError(NO_JSON)
    return written


def _json(value: Any) -> bytes:
    import orjson

    try:
        return bytes(orjson.dumps(value))
    except TypeError:
        pass
    try:
        return json.dumps(value, ensure_ascii=False).encode()  # numbers of more than 64 bits
    except TypeError:
        raise ValueError(NO_JSON) from None


def _unsupervised(row: Row, max_length: int) -> str:
    # The first token is never supervised: nothing predicts it.
    if sum(end - max(start, 1) for start, end in row.spans) > 0:
        return ""
    return f"nothing of an answer within {max_length} tokens" if row.tokens > max_length else "nothing to supervise"


def _words(conversation: Conversation) -> bytes:
    """The text by which near duplicates are known: not the system's, which many rows share, nor the template's."""
    if not conversation.messages:
        return conversation.text.encode()
    parts = [message["content"] for message in conversation.messages if message["role"] not in ("system", "developer")]
    calls = [_json(message["tool_calls"]).decode() for message in conversation.messages if "tool_calls" in message]
    return "\n".join(parts + calls).encode()


def _staged(rows: list[tuple[str, Any, Content, Conversation]]) -> Any:
    import pyarrow as pa

    def lists(lengths: list[int], flat: Any) -> Any:
        offsets = np.cumsum([0, *lengths], dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.int32()))

    ids = [row.ids for _, row, *_ in rows]
    bounds = [[bound for span in row.spans for bound in span] for _, row, *_ in rows]

    columns = [
        pa.array([key for key, *_ in rows], pa.string()),
        lists([*map(len, ids)], np.concatenate(ids) if ids else []),
        lists([*map(len, bounds)], [*itertools.chain(*bounds)]),
        pa.array([row.tokens for _, row, *_ in rows], pa.int32()),
        pa.array([content if talk.messages else b"[]" for *_, (content, _), talk in rows], pa.binary()).cast(
            pa.string()
        ),
        pa.array([tools for *_, (_, tools), _ in rows], pa.binary()).cast(pa.string()),
        pa.array([talk.group for *_, talk in rows], pa.string()),
        pa.array([talk.slice for *_, talk in rows], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=staged_schema())


@contextlib.contextmanager
def workers(config: PrepareConfig, tokenizer: Path, encoder: Encoder) -> Iterator[Callable[..., Iterator[Any]]]:
    """Gives a function that prepares chunks in order, in this process or in several.

    Args:
        config: the step's options.
        tokenizer: folder of the tokenizer, which every process loads for itself.
        encoder: this process's own.
    """
    if config.processes == 1:
        yield lambda given: ((chunk, prepare(chunk, config, encoder)) for chunk in given)
        return
    # Not forked: the tokenizers' threads do not live on in a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        config.processes, context, _start, (config, tokenizer, encoder.fast)
    ) as pool:
        yield lambda given: _in_order(pool, given, 2 * config.processes)


def _in_order(pool: Any, given: Iterable[Chunk], ahead: int) -> Iterator[tuple[Chunk, Prepared]]:
    # At most so many chunks are under way: the reader must not run ahead and fill the memory.
    waiting: collections.deque[tuple[Chunk, Any]] = collections.deque()
    for chunk in given:
        waiting.append((chunk, pool.submit(_prepare, chunk)))
        if len(waiting) > ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


_own: tuple[PrepareConfig, Encoder]


def _start(config: PrepareConfig, folder: Path, fast: bool) -> None:
    global _own
    quiet_libraries()
    _own = (config, Encoder(loading.load_tokenizer(folder), config.max_length, config.supervise == "last", fast))


def _prepare(chunk: Chunk) -> Prepared:
    return prepare(chunk, *_own)
