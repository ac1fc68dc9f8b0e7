"""Turns the listed data into token ids and labels, and accounts for every row.

Two passes: the first reads, checks, tokenises and stages the rows, the second leaves out duplicates and writes the
sets. What grows with the rows is in files, so memory does not grow with them.
"""

import collections
import contextlib
import dataclasses
import gc
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import duplicates, formats, listing, tokenized
from qlora_pipelines.components.core.data.duplicates import DuplicateIndex
from qlora_pipelines.components.core.data.listing import DataFile
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading, run_tokenizer, vocabulary
from qlora_pipelines.components.core.runtime import Progress, log
from qlora_pipelines.components.core.store import copies, keys, local_files, outputs, storage
from qlora_pipelines.components.prepare_dataset import preparing, workers
from qlora_pipelines.components.prepare_dataset.data_report import Kept, write_report
from qlora_pipelines.components.prepare_dataset.encoding import Encoder
from qlora_pipelines.components.prepare_dataset.preparing import Chunk, Prepared
from qlora_pipelines.components.prepare_dataset.split import Contamination, RowStatus, assign, ids_of, select

Config = PrepareConfig
CHECKED_ROWS = 128
"""Rows on which fastokens is compared with the model's own tokenizer."""
FIRST_REASONS = 10
LOGGED_NOTES = 10
EXAMPLES = 3
"""Rows that the report names for each reason and each note."""
FIRST_FILES = 100
"""So many files are each named in the log as they are read."""


class Result(NamedTuple):
    """What came out: the digest of both sets, and how many rows went where."""

    dataset_digest: str
    train_rows: int
    eval_rows: int
    rejected_rows: int
    duplicate_rows: int


@dataclasses.dataclass
class Read:
    """What the first pass counted.

    `rejected` rows cannot be used, `left_out` ones ask for it themselves. `reasons` and `notes` are counts by text;
    `examples` has the first rows of each.
    """

    rows: int = 0
    rejected: int = 0
    left_out: int = 0
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    notes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    first: list[str] = dataclasses.field(default_factory=list)
    files: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    extra: set[str] = dataclasses.field(default_factory=set)
    slow_chunks: int = 0

    def count(self, counter: collections.Counter[str], what: str, where: str) -> None:
        """Counts a row, and keeps where it is if it is among the first."""
        counter[what] += 1
        if counter[what] <= EXAMPLES:
            self.examples.setdefault(what, []).append(where)


def run(
    config: PrepareConfig,
    *,
    listing_uri: str,
    tokenizer_uri: str,
    train_set: str,
    eval_set: str,
    rejected: str,
    report: str,
    data_key: str = "",
) -> Result:
    """Reads exactly the listed files and writes the tokenised sets; or copies those that this key already has.

    Args:
        config: the step's options.
        listing_uri: the listing that plan_run wrote.
        tokenizer_uri: folder of the base model's tokenizer.
        train_set: Parquet file to write: id, input_ids, labels, messages and tools (JSON), group, slice, extra (JSON).
        eval_set: Parquet file to write, of the same columns.
        rejected: JSONL file to write: file, line and reason of each row that is not used, its id, and the key that
            the reason is about.
        report: HTML page to write.
        data_key: names what comes out, which is kept in the store under this key; empty: it is neither looked for nor
            kept.

    Raises:
        InputError: unreadable data, too many unusable rows, or nothing left to train on or to evaluate; or a data_key
            that is not that of listing, tokenizer and options.
    """
    listed = listing.read(listing_uri)
    if config.decontaminate_words and "eval" not in listed:
        raise InputError("decontaminate_words compares with evaluation data, and the listing has none")
    written = {"train_set": train_set, "eval_set": eval_set, "rejected": rejected, "report": report}
    for path in written.values():  # a folder that cannot be made fails now, not at the end
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        given = copies.download(tokenizer_uri, Path(scratch, "given"))
        tokenizer = run_tokenizer.make(given, config.chat_template, Path(scratch, "tokenizer"))
        if not data_key:
            return _prepare(config, listed, tokenizer, Path(scratch), **written)
        key = keys.data_key(listing.data_digest(listed), config, base_model.tokenizer_digest(tokenizer))
        if key != data_key:
            raise InputError(
                f"data_key is {data_key[:12]}, and that of listing, tokenizer and options is {key[:12]}: give what"
                " plan_run returned, or no data_key"
            )
        key_uri = storage.join(storage.root(), "prepared", data_key)
        if finished := outputs.restore(key_uri, written, Result._fields):
            return Result(**finished)
        result = _prepare(config, listed, tokenizer, Path(scratch), **written)
        outputs.keep(key_uri, written, result._asdict())
        return result


def _prepare(
    config: PrepareConfig,
    listed: listing.Listing,
    tokenizer_folder: Path,
    folder: Path,
    *,
    train_set: str,
    eval_set: str,
    rejected: str,
    report: str,
) -> Result:
    import pyarrow as pa

    files = listing.files(listed)
    with contextlib.ExitStack() as stack:
        tokenizer = loading.load_tokenizer(tokenizer_folder)
        beyond = vocabulary.beyond(tokenizer, tokenizer_folder)
        encoder = Encoder(tokenizer, config.max_length, config.supervise == "last", beyond=beyond)
        note = _choose_tokenizer(encoder, files, folder, config)
        # What was imported so far stays: the garbage collector need not look through it again and again.
        gc.freeze()
        index = stack.enter_context(contextlib.closing(DuplicateIndex(folder, config.near_duplicate_threshold)))
        contamination = Contamination()
        with (
            workers.in_processes(config, tokenizer_folder, encoder) as prepare,
            # A run that stops later still leaves the reasons there.
            local_files.replacing(Path(rejected)) as unfinished,
            unfinished.open("w", encoding="utf-8") as rejections,
            pa.OSFile(str(folder / "staged"), "wb") as file,
            pa.ipc.new_file(file, preparing.staged_schema()) as staged,
        ):
            read = _read(prepare(_chunks(files, folder, config)), index, contamination, rejections, staged)
        _check_rejected(read, config)
        if missing := ", ".join(name for name in config.extra_columns if name not in read.extra):
            raise InputError(f"extra_columns: no row has {missing}; name columns of the data")
        statuses, near = assign(index, contamination, config.eval_share if "eval" not in files else None)
        _check_left(statuses, read.rows)
        kept = Kept(tokenizer, config.max_length)
        near_ids = ids_of(folder / "staged", itertools.chain(*near))
        with tokenized.Writer({"train": train_set, "eval": eval_set}, loading.tokenizer_digest(tokenizer)) as writer:
            for side, batch, rows in select(folder / "staged", statuses):
                writer.write(side, batch)
                kept.add(side, rows)
            digest = writer.close()
    result = Result(
        dataset_digest=digest,
        train_rows=int((statuses == RowStatus.TRAIN).sum()),
        eval_rows=int((statuses == RowStatus.EVAL).sum()),
        rejected_rows=read.rejected + read.left_out,
        duplicate_rows=int((statuses >= RowStatus.EXACT_DUPLICATE).sum()),
    )
    note += f"; on {read.slow_chunks} chunks of {preparing.CHUNK_ROWS} rows it was not" if read.slow_chunks else ""
    write_report(report, result, read, statuses, kept, note, [(near_ids[row], near_ids[other]) for row, other in near])
    share = float((statuses == RowStatus.NEAR_DUPLICATE).sum()) / read.rows
    if share > duplicates.MANY:
        log(f"{duplicates.many(share)}: the report shows some", "warning")
    log(
        f"{result.train_rows} rows to train on, {result.eval_rows} to evaluate on;"
        f" {result.duplicate_rows} duplicates, {read.rejected} rejected"
        + (f", {read.left_out} left out as their rows ask" if read.left_out else "")
    )
    for note, rows in read.notes.most_common(LOGGED_NOTES):
        log(f"{note}: {rows} rows, such as {', '.join(read.examples[note])}", "warning")
    return result


def _choose_tokenizer(encoder: Encoder, files: dict[str, list[DataFile]], folder: Path, config: PrepareConfig) -> str:
    """Compares fastokens with the model's own tokenizer on the first rows of each side; says which is used."""
    rows: list[formats.Conversation] = []
    for side in sorted(files):
        file = files[side][0]
        for chunk in itertools.islice(preparing.chunks(file, file.fetch(folder), side == "eval", config), 1):
            rows += itertools.islice(preparing.conversations(chunk, config, encoder), CHECKED_ROWS)
    own = "the model's own tokenizer"
    if not encoder.fast:
        note = f"tokenised by {own}: fastokens does not take it"
    elif different := encoder.check(rows):
        note = f"tokenised by {own}: fastokens differs on {different} of {len(rows)} rows"
    else:
        note = f"tokenised by fastokens: ids and labels as {own}'s on {len(rows)} of {len(rows)} rows"
    log(note)
    return note


def _chunks(files: dict[str, list[DataFile]], folder: Path, config: PrepareConfig) -> Iterator[Chunk]:
    for side in sorted(files):  # eval before train: training rows are compared with it
        progress = Progress(f"reading files of {side}", len(files[side]))
        for number, file in enumerate(files[side], 1):
            with tempfile.TemporaryDirectory(dir=folder) as copies:
                if len(files[side]) <= FIRST_FILES:
                    log(f"reading {file.uri}")
                else:  # documents, perhaps: a line each would be all of the log
                    progress.at(number)
                yield from preparing.chunks(file, file.fetch(Path(copies)), side == "eval", config)


def _read(
    prepared: Iterator[tuple[Chunk, Prepared]],
    index: DuplicateIndex,
    contamination: Contamination,
    rejections: Any,
    staged: Any,
) -> Read:
    read = Read()
    for chunk, done in prepared:
        contamination.add(done.ngrams, chunk.held_out, index.rows)
        index.add(done.ids, done.sets, done.signatures, chunk.held_out)
        staged.write_batch(done.rows)
        name = Path(chunk.file).name
        for row in done.rejected:
            line = {"file": chunk.file, "line": row.line, "id": row.id, "key": row.key, "reason": row.reason}
            rejections.write(json.dumps({key: value for key, value in line.items() if value}) + "\n")
            read.count(read.reasons, row.reason, f"{name}:{row.line}{row.id and f' ({row.id})'}")
            if not row.left_out and len(read.first) < FIRST_REASONS:
                read.first.append(f"{name}:{row.line} {row.key and f'{row.key}: '}{row.reason}")
        for note, number in done.notes:
            read.count(read.notes, note, f"{name}:{number}")
        read.rows += len(chunk.records)
        left_out = sum(row.left_out for row in done.rejected)
        read.left_out += left_out
        read.rejected += len(done.rejected) - left_out
        read.slow_chunks += done.slow
        read.extra |= done.extra
        if not read.files or read.files[-1][0] != chunk.file:
            read.files.append((chunk.file, chunk.form or "none", 0))
        read.files[-1] = (*read.files[-1][:2], read.files[-1][2] + len(chunk.records))
    return read


def _check_rejected(read: Read, config: PrepareConfig) -> None:
    share = read.rejected / max(read.rows, 1)
    if share > config.max_rejected_share:
        raise InputError(
            f"{read.rejected} of {read.rows} rows cannot be used ({share:.1%}, allowed are"
            f" {config.max_rejected_share:.1%}): {'; '.join(read.first)}"
        )


def _check_left(statuses: Any, rows: int) -> None:
    for name, status in (("train", RowStatus.TRAIN), ("evaluate", RowStatus.EVAL)):
        if not np.any(statuses == status):
            duplicates = int((statuses >= RowStatus.EXACT_DUPLICATE).sum())
            raise InputError(
                f"no row is left to {name} on, of {rows} read: {duplicates} are duplicates,"
                f" {rows - len(statuses)} were rejected"
            )
