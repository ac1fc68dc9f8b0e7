"""The rows that are measured on: the demo's, or those of the file that BENCH_DATA names."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.models import loading
from tests.benchmarks.measure import MODEL

DATA = "pipelines/demo/tickets_train.jsonl"


def encoded(first: int, rows: int, max_length: int, last_only: bool = False) -> list[chat_template.Encoded]:
    """So many rows as token ids and labels, from the first one on; `last_only`: supervised in the last answer alone."""
    tokenizer = loading.load_tokenizer(MODEL)
    data = Path(os.environ.get("BENCH_DATA", DATA))
    chosen = itertools.islice(_conversations(data), first, first + rows)
    return [chat_template.encode(tokenizer, row, max_length, last_only=last_only) for row in chosen]


def _conversations(path: Path) -> Iterator[Any]:
    """Of a JSON or JSONL file with messages, or with instruction, input and output."""
    text = path.read_text()
    for row in json.loads(text) if path.suffix == ".json" else map(json.loads, filter(None, text.split("\n"))):
        if "messages" in row:
            yield row["messages"]
        else:
            question = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
            yield [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
