"""Scores of a real run: the demo's base, tuned and merged model on its 60 held-out tickets, sliced by severity.

`gained`, of base and tuned: by how many nats an answer is likelier after its own ticket than after another.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet

from qlora_pipelines.components.evaluate_model import score_table
from qlora_pipelines.components.evaluate_model.score_table import Pairing, Scores, Subject

FILE = Path(__file__).parent / "demo_scores.parquet"
COLUMNS = [field.name for field in dataclasses.fields(Scores)]


def subject(name: str) -> Subject:
    columns = pyarrow.parquet.read_table(FILE, filters=[("subject", "=", name)]).to_pydict()
    scores = score_table.table(list(zip(*(columns[column] for column in COLUMNS), strict=True)))
    gained = np.array([gained for _, gained in sorted(zip(columns["id"], columns["gained"], strict=True))])
    pairing = Pairing(scores.id, scores.group, gained, scores.tokens) if None not in columns["gained"] else None
    return Subject(name, scores, [], pairing=pairing)


def changed(of: Subject, **columns: object) -> Subject:
    """The same subject with other columns."""
    return dataclasses.replace(of, scores=dataclasses.replace(of.scores, **columns))


def drawn(of: Subject, rows: np.ndarray) -> Subject:
    """The rows at these places, each a row of its own though it be drawn twice."""
    columns = {column: getattr(of.scores, column)[rows] for column in COLUMNS}
    columns["id"] = columns["group"] = names = np.array([f"{place:04}" for place in range(len(rows))])
    pairing = of.pairing and Pairing(names, names, of.pairing.gained[rows], of.pairing.tokens[rows])
    return dataclasses.replace(of, scores=Scores(**columns), pairing=pairing)
