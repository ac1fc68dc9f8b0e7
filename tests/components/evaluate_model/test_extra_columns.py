"""Further columns of the data come out with the rows' scores and answers."""

import json
from pathlib import Path

import pyarrow.parquet

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data.chat_template import Encoded
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.evaluate_model import evaluation_report, gate, score_table
from qlora_pipelines.components.evaluate_model.score_table import Answer, ScoredModel, Scores

EXTRA = [{"source": "a & b\u2028", "id": 7}, {"source": None, "id": {"deep": [1]}}, {}]
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SAMPLES = [Sample(f"row{n}", TURNS, Encoded([1, 2], [-100, 2]), extra=extra) for n, extra in enumerate(EXTRA)]


def models(change: float) -> list[ScoredModel]:
    rows = [(sample.id, "", "", 1.0, 1, 1, 1) for sample in SAMPLES]
    other = [(name, group, part, nll * change, *rest) for name, group, part, nll, *rest in rows]
    answers = [Answer(sample.id, "asked", "a", "b", {"exact_match": 0.0}) for sample in SAMPLES]
    return [ScoredModel(name, Scores.from_rows(of), answers) for name, of in (("base", rows), ("tuned", other))]


def test_they_are_in_scores_and_answers(tmp_path: Path) -> None:
    score_table.write(str(tmp_path), models(0.5), SAMPLES)
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet")
    assert table["extra.source"].to_pylist() == ["a & b\u2028", None, None] * 2
    assert table["extra.id"].to_pylist() == ["7", '{"deep": [1]}', None] * 2
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_bytes().split(b"\n") if line]
    assert [line.get("extra", {}) for line in lines] == EXTRA * 2
    assert score_table.read(str(tmp_path), "tuned") is not None
    assert score_table.read(str(tmp_path), "tuned").answers == models(0.5)[1].answers


def test_they_are_next_to_the_row_in_the_report(tmp_path: Path) -> None:
    for change in (0.5, 2.0):
        page = tmp_path / "page.html"
        evaluation_report.write(EvaluateConfig(), gate.Verdict(True, "", []), models(change), SAMPLES, str(page))
        said = page.read_text()
        assert said.count("source a &amp; b\u2028") == 1 and "id {&#34;deep&#34;: [1]}" in said
        assert "<td>source</td>" in said and "source None" not in said
