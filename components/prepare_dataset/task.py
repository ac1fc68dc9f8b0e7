"""Turns the listed data into token ids and labels, and accounts for every row."""

import collections
import dataclasses
import hashlib
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.core import chat, data_listing, dataset, models, storage
from components.core.config import PrepareConfig
from components.core.dataset import Sample
from components.core.errors import InputError
from components.core.report import Markup, Report, escape
from components.core.steps import log
from components.prepare_dataset import reading

Config = PrepareConfig
SAMPLES = 6


class Result(NamedTuple):
    """What came out: the digest of both sets, and how many rows went where."""

    dataset_digest: str
    train_rows: int
    eval_rows: int
    rejected_rows: int
    duplicate_rows: int


@dataclasses.dataclass
class _Sets:
    train: list[Sample]
    eval: list[Sample]
    rejected: list[dict[str, Any]]
    duplicates: int = 0


def run(
    config: PrepareConfig,
    *,
    listing_uri: str,
    tokenizer_uri: str,
    train_set: str,
    eval_set: str,
    rejected: str,
    report: str,
) -> Result:
    """Reads exactly the listed files and writes the tokenised sets.

    Args:
        config: the step's options.
        listing_uri: the listing that plan_run wrote.
        tokenizer_uri: folder of the base model's tokenizer.
        train_set: Parquet file to write: id, input_ids, labels, messages (JSON).
        eval_set: Parquet file to write, of the same columns.
        rejected: JSONL file to write: file, line and reason of each row that cannot be used.
        report: HTML page to write.

    Raises:
        InputError: unreadable data, too many unusable rows, or nothing left to train on or to evaluate.
    """
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = models.load_tokenizer(storage.download(tokenizer_uri, Path(folder)))
    sets = _sort(data_listing.load(listing_uri), config, tokenizer)
    _write_rejected(sets.rejected, rejected)
    _check(sets, config)
    result = Result(
        dataset_digest=dataset.write({"train": (sets.train, train_set), "eval": (sets.eval, eval_set)}),
        train_rows=len(sets.train),
        eval_rows=len(sets.eval),
        rejected_rows=len(sets.rejected),
        duplicate_rows=sets.duplicates,
    )
    _report(sets, result, config, tokenizer, report)
    log(
        f"{result.train_rows} rows to train on, {result.eval_rows} to evaluate on;"
        f" {result.duplicate_rows} duplicates, {result.rejected_rows} rejected"
    )
    return result


def _sort(files: dict[str, list[str]], config: PrepareConfig, tokenizer: Any) -> _Sets:
    """Each row to its side. The held-out side is read first: a copy of its rows in the training data is a duplicate."""
    sets = _Sets([], [], [])
    seen: set[str] = set()
    for side in sorted(files, key=["eval", "train"].index):
        for uri in files[side]:
            for line, row in reading.rows(uri):
                try:
                    sample = _sample(row, config, tokenizer)
                except ValueError as error:
                    sets.rejected.append({"file": uri, "line": line, "reason": str(error)})
                    continue
                if sample.id in seen:
                    sets.duplicates += 1
                    continue
                seen.add(sample.id)
                held_out = side == "eval" or ("eval" not in files and _held_out(sample.id, config.eval_share))
                (sets.eval if held_out else sets.train).append(sample)
    return sets


def _held_out(row_id: str, share: float) -> bool:
    # By content, so that a row stays on its side as the data grows.
    return int(row_id[:8], 16) < share * 2**32


def _sample(row: reading.Row, config: PrepareConfig, tokenizer: Any) -> Sample:
    messages = reading.conversation(row)
    encoded = chat.encode(tokenizer, messages, config.max_length)
    if not encoded.supervised:
        raise ValueError(f"nothing of an assistant's answer within {config.max_length} tokens")
    content = json.dumps(messages, sort_keys=True, ensure_ascii=False)
    return Sample(hashlib.sha256(content.encode()).hexdigest(), messages, encoded)


def _check(sets: _Sets, config: PrepareConfig) -> None:
    rows = len(sets.train) + len(sets.eval) + len(sets.rejected) + sets.duplicates
    share = len(sets.rejected) / max(rows, 1)
    if share > config.max_rejected_share:
        reasons = "; ".join(f"{Path(r['file']).name}:{r['line']} {r['reason']}" for r in sets.rejected[:10])
        raise InputError(
            f"{len(sets.rejected)} of {rows} rows cannot be used ({share:.1%}, allowed are"
            f" {config.max_rejected_share:.1%}): {reasons}"
        )
    for name, samples in (("train", sets.train), ("evaluate", sets.eval)):
        if not samples:
            raise InputError(f"no row is left to {name} on, of {rows} read")


def _write_rejected(rejected: list[dict[str, Any]], path: str) -> None:
    storage.write_bytes(path, "".join(json.dumps(row) + "\n" for row in rejected).encode())


def _report(sets: _Sets, result: Result, config: PrepareConfig, tokenizer: Any, path: str) -> None:
    report = Report("Data", f"Every row read is accounted for. Dataset digest {result.dataset_digest[:16]}.")
    lengths = [len(sample.encoded.input_ids) for sample in sets.train]
    supervised = sum(sample.encoded.supervised for sample in sets.train)
    report.table(
        ["", "rows"],
        [
            ("to train on", result.train_rows),
            ("to evaluate on", result.eval_rows),
            ("duplicates, left out", result.duplicate_rows),
            ("rejected", result.rejected_rows),
        ],
    )
    report.section("Tokens to train on")
    report.table(
        ["", ""],
        [
            ("tokens", sum(lengths)),
            ("supervised tokens", supervised),
            ("longest conversation", max(lengths)),
            (f"cut at max_length {config.max_length}", sum(length == config.max_length for length in lengths)),
        ],
    )
    if sets.rejected:
        report.section("Why rows were rejected")
        report.table(["reason", "rows"], collections.Counter(row["reason"] for row in sets.rejected).most_common())
    report.section("As the model sees them", "Marked tokens are supervised.")
    for sample in sets.train[:SAMPLES]:
        report.block(_marked(sample.encoded, tokenizer))
    report.write(path)


def _marked(encoded: chat.Encoded, tokenizer: Any) -> Markup:
    parts = []
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    for supervised, group in itertools.groupby(pairs, key=lambda pair: pair[1] != chat.IGNORED):
        text = escape(tokenizer.decode([token for token, _ in group]))
        parts.append(f"<mark>{text}</mark>" if supervised else text)
    return Markup("".join(parts))
