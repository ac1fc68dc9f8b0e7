"""Scores of a real run: the demo's base, tuned and merged model on its 60 held-out tickets, sliced by severity.

`gained`, of base and tuned: by how many nats an answer is likelier after its own ticket than after another.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet

from qlora_pipelines.components.evaluate_model.score_table import QuestionSwap, ScoredModel, Scores

FILE = Path(__file__).parent / "demo_scores.parquet"
COLUMNS = [field.name for field in dataclasses.fields(Scores)]


def scored(name: str) -> ScoredModel:
    columns = pyarrow.parquet.read_table(FILE, filters=[("subject", "=", name)]).to_pydict()
    scores = Scores.from_rows(list(zip(*(columns[column] for column in COLUMNS), strict=True)))
    gained = np.array([gained for _, gained in sorted(zip(columns["id"], columns["gained"], strict=True))])
    question_swap = (
        QuestionSwap(scores.id, scores.group, gained, scores.tokens) if None not in columns["gained"] else None
    )
    return ScoredModel(name, scores, [], question_swap=question_swap)


def changed(of: ScoredModel, **columns: object) -> ScoredModel:
    """The same model with other columns."""
    return dataclasses.replace(of, scores=dataclasses.replace(of.scores, **columns))


def drawn(of: ScoredModel, rows: np.ndarray) -> ScoredModel:
    """The rows at these places, each a row of its own even where it is drawn twice."""
    columns = {column: getattr(of.scores, column)[rows] for column in COLUMNS}
    columns["id"] = columns["group"] = names = np.array([f"{place:04}" for place in range(len(rows))])
    question_swap = of.question_swap and QuestionSwap(
        names, names, of.question_swap.gain[rows], of.question_swap.tokens[rows]
    )
    return dataclasses.replace(of, scores=Scores(**columns), question_swap=question_swap)
