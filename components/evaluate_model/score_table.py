"""What is known of each row under one model, and the files that keep it.

scores.parquet   every model's rows, one model after another, with the data's extra columns as `extra.NAME`
answers.jsonl    every model's generated answers, with these as `extra`
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError, first_line

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]
SCORES, ANSWERS = "scores.parquet", "answers.jsonl"
COUNTS = ("tokens", "bytes", "right_tokens")
"""Columns that the file keeps as whole numbers."""


@dataclasses.dataclass(frozen=True)
class Scores:
    """One model's rows, sorted by id; every column has the shape (rows,).

    `nll` is the summed negative log-likelihood of a row's supervised tokens in nats, `right_tokens` how many of them
    the model found the likeliest, `bytes` how long their text is in UTF-8. A row without a group is a group of its own.
    """

    id: Strings
    group: Strings
    slice: Strings
    nll: Floats
    tokens: Floats
    bytes: Floats
    right_tokens: Floats

    @classmethod
    def from_rows(cls, rows: Iterable[tuple[Any, ...]]) -> "Scores":
        """Scores of rows (id, group, slice, nll, tokens, bytes, right tokens), in any order."""
        columns = list(zip(*sorted(rows), strict=True)) or [()] * 7
        types: list[Any] = [np.str_] * 3 + [np.float64] * 4
        return cls(*(np.array(column, dtype=dtype) for column, dtype in zip(columns, types, strict=True)))

    def __len__(self) -> int:
        """Rows."""
        return len(self.id)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats per supervised token; perplexity is e to its power."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Mean negative log-likelihood in bits per byte of the supervised text.

        A token of a larger vocabulary holds more text, so losses per token say nothing between tokenizers. The bytes of
        the text are the same for all (Gao et al. 2020, The Pile, section 3.1). A nat is 1 / ln 2 bits.
        """
        return float(self.nll.sum() / math.log(2) / self.bytes.sum())

    @property
    def token_accuracy(self) -> float:
        """Share of the supervised tokens that the model found the likeliest."""
        return float(self.right_tokens.sum() / self.tokens.sum())

    def only(self, ids: Strings) -> "Scores":
        """The rows whose id is among `ids`."""
        wanted = np.isin(self.id, ids)
        return Scores(*(getattr(self, field.name)[wanted] for field in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Answer:
    """A generated answer with its reference; `scores` are its scores from 0 to 1, by metric."""

    id: str
    prompt: str
    reference: str
    answer: str
    scores: dict[str, float]


class QuestionSwap(NamedTuple):
    """What each row's own question does for its first answer; every column has the shape (rows,).

    `gain` is by how many nats the answer is likelier after its own question than after another row's, `tokens` how long
    the answer is.
    """

    id: Strings
    group: Strings
    gain: Floats
    tokens: Floats


@dataclasses.dataclass(frozen=True)
class ScoredModel:
    """One model's scores and answers; `tasks` are its figures on lm-eval's tasks."""

    name: str
    scores: Scores
    answers: list[Answer]
    tasks: dict[str, float] = dataclasses.field(default_factory=dict)
    question_swap: QuestionSwap | None = None

    def mean(self, metric: str) -> float:
        """Mean of a metric over all answers, or -1 where none was generated."""
        values = [answer.scores[metric] for answer in self.answers]
        return sum(values) / len(values) if values else -1.0


def write(folder: str, models: Sequence[ScoredModel], samples: Sequence[Sample] = ()) -> None:
    """Writes both files.

    Args:
        folder: to write them into.
        models: all scored models.
        samples: the rows, for their extra columns.
    """
    import pyarrow as pa
    import pyarrow.parquet

    Path(folder).mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"subject": np.concatenate([[model.name] * len(model.scores) for model in models])}
    for field in dataclasses.fields(Scores):
        values = np.concatenate([getattr(model.scores, field.name) for model in models])
        columns[field.name] = values.astype(np.int64) if field.name in COUNTS else values
    extra = {sample.id: sample.extra for sample in samples}
    for name in {name: None for sample in samples for name in sample.extra}:
        found = [extra[row].get(name) for row in columns["id"].tolist()]
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in found]
        columns[f"extra.{name}"] = pa.array(texts, pa.string())
    pa.parquet.write_table(pa.table(columns), Path(folder, SCORES), compression="zstd")
    lines = [
        {"subject": model.name}
        | dataclasses.asdict(answer)
        | ({"extra": extra[answer.id]} if extra.get(answer.id) else {})
        for model in models
        for answer in model.answers
    ]
    Path(folder, ANSWERS).write_bytes(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))


def read(folder: str, name: str) -> ScoredModel:
    """One model out of what `write` wrote.

    Raises:
        InputError: it is not there.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(Path(folder, SCORES), filters=[("subject", "=", name)]).to_pylist()
        answers = [json.loads(line) for line in Path(folder, ANSWERS).read_bytes().split(b"\n") if line]
    except (OSError, pyarrow.ArrowException, json.JSONDecodeError) as error:
        raise InputError(f"scores {folder}: {first_line(error)}") from None
    if not rows:
        raise InputError(f"scores {folder}: they hold no {name} model")
    scores = Scores.from_rows(tuple(row[field.name] for field in dataclasses.fields(Scores)) for row in rows)
    fields = [field.name for field in dataclasses.fields(Answer)]
    own = [Answer(**{field: answer[field] for field in fields}) for answer in answers if answer["subject"] == name]
    return ScoredModel(name, scores, own)
