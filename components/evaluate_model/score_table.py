"""What is known of each row under one model: columns of one length, and the files they are kept in.

scores.parquet   every subject's rows, one after another
answers.jsonl    every subject's generated answers
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.errors import InputError

Floats = NDArray[np.float64]
SCORES, ANSWERS = "scores.parquet", "answers.jsonl"


@dataclasses.dataclass(frozen=True)
class Scores:
    """One subject's rows, sorted by id; every column has the shape (rows,).

    `nll` is the summed negative log-likelihood of a row's supervised tokens in nats, `right_tokens` how many of these
    the model held for the likeliest, `bytes` how long their text is in UTF-8. A row without a group is its own.
    """

    id: NDArray[np.str_]
    group: NDArray[np.str_]
    slice: NDArray[np.str_]
    nll: Floats
    tokens: Floats
    bytes: Floats
    right_tokens: Floats

    def __len__(self) -> int:
        """Rows."""
        return len(self.id)

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats a supervised token."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def bits_a_byte(self) -> float:
        """Mean negative log-likelihood, bits a byte of the supervised text: the same unit whatever the tokenizer."""
        return float(self.nll.sum() / math.log(2) / self.bytes.sum())

    @property
    def token_accuracy(self) -> float:
        """Share of supervised tokens that the model held for the likeliest."""
        return float(self.right_tokens.sum() / self.tokens.sum())

    def only(self, ids: NDArray[np.str_]) -> "Scores":
        """The rows whose id is among `ids`."""
        wanted = np.isin(self.id, ids)
        columns = (getattr(self, field.name)[wanted] for field in dataclasses.fields(self))
        return Scores(*columns)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One generated answer beside its reference; `scores` are its marks from 0 to 1, by metric."""

    id: str
    prompt: str
    reference: str
    answer: str
    scores: dict[str, float]


class Pairing(NamedTuple):
    """How a model takes answers that are put after another row's question; every column has the shape (rows,).

    `gained` is by how many nats the first answer of a row is likelier after its own question, `tokens` how long it is.
    """

    id: NDArray[np.str_]
    group: NDArray[np.str_]
    gained: Floats
    tokens: Floats


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model's scores and answers; `tasks` are its figures on lm-eval's tasks."""

    name: str
    scores: Scores
    answers: list[Answer]
    tasks: dict[str, float] = dataclasses.field(default_factory=dict)
    pairing: Pairing | None = None

    def mark(self, metric: str) -> float:
        """Mean of a metric over all answers, or -1 where none was generated."""
        marks = [answer.scores[metric] for answer in self.answers]
        return sum(marks) / len(marks) if marks else -1.0


def table(rows: Sequence[tuple[str, str, str, float, float, float, float]]) -> Scores:
    """Scores out of rows (id, group, slice, nll, tokens, bytes, right tokens), in any order."""
    columns = list(zip(*sorted(rows), strict=True)) or [()] * 7
    kinds: list[Any] = [np.str_] * 3 + [np.float64] * 4
    return Scores(*(np.array(column, dtype=kind) for column, kind in zip(columns, kinds, strict=True)))


def write(folder: str, subjects: Sequence[Subject]) -> None:
    """Writes both files."""
    import pyarrow as pa
    import pyarrow.parquet

    Path(folder).mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"subject": np.concatenate([[one.name] * len(one.scores) for one in subjects])}
    for field in dataclasses.fields(Scores):
        columns[field.name] = np.concatenate([getattr(one.scores, field.name) for one in subjects])
    for name in ("tokens", "bytes", "right_tokens"):
        columns[name] = columns[name].astype(np.int64)
    pa.parquet.write_table(pa.table(columns), Path(folder, SCORES), compression="zstd")
    lines = [{"subject": one.name} | dataclasses.asdict(answer) for one in subjects for answer in one.answers]
    Path(folder, ANSWERS).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read(folder: str, subject: str) -> Subject:
    """One subject out of what `write` wrote.

    Raises:
        InputError: it is not there.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(folder, SCORES)
    try:
        columns = pyarrow.parquet.read_table(path, filters=[("subject", "=", subject)]).to_pydict()
        answers = [json.loads(line) for line in Path(folder, ANSWERS).read_text().splitlines()]
    except (OSError, pyarrow.ArrowException, json.JSONDecodeError) as error:
        raise InputError(f"scores {folder}: {str(error).splitlines()[0]}") from None
    if not columns["id"]:
        raise InputError(f"scores {folder}: they hold no {subject} model")
    rows = zip(*(columns[field.name] for field in dataclasses.fields(Scores)), strict=True)
    mine = [answer for answer in answers if answer.pop("subject") == subject]
    return Subject(subject, table(list(rows)), [Answer(**answer) for answer in mine])
