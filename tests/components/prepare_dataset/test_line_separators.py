"""Only `\\n` ends a line: text may hold any other character at which Python's `str.splitlines` cuts."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core import runtime
from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import readers
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.evaluate_model import evaluation_report, gate, score_table
from qlora_pipelines.components.evaluate_model.score_table import Answer, ScoredModel, Scores
from tests.components.test_contracts import ROOT
from tests.conftest import conversation

SEPARATORS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n", "\n"]
WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "sat", "on", "the"]


def rows(separator: str) -> list[dict[str, Any]]:
    pairs = [(first, last) for first in WORDS for last in WORDS]
    return [conversation(f"the {one}{separator}sat on {two}", f"{two}{separator}{one}") for one, two in pairs]


@pytest.fixture(autouse=True)
def _store(place: Path) -> None:
    """A store of the test's own."""


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_questions_and_answers_are_prepared_whole(
    kind: str, separator: str, tmp_path: Path, prepared: Callable[..., Any]
) -> None:
    data, given = tmp_path / f"rows.{kind}", rows(separator)
    pairs = [[turn["content"] for turn in row["messages"]] for row in given]
    if kind == "csv":
        with data.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["prompt", "completion"], *pairs])
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in given]
        data.write_bytes(("\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]").encode())
    run = prepared(data, near_duplicate_threshold=0)
    kept = [[turn["content"] for turn in one.messages] for side in ("train", "eval") for one in run.side(side)]
    assert sorted(kept) == sorted(pairs) and run.result.rejected_rows == 0


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
def test_lines_may_end_as_on_windows_and_the_last_one_need_not(ending: str, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_bytes(((ending or "\n").join(json.dumps({"a": number}) for number in range(3)) + ending).encode())
    read = [(number, readers.decode(record)) for number, record in readers.records(data, str(data))]
    assert read == [(1, {"a": 0}), (2, {"a": 1}), (3, {"a": 2})]


@pytest.mark.parametrize("separator", SEPARATORS[:3], ids=ascii)  # others are refused in the names of files
def test_a_rejected_row_is_named_by_its_line_and_file(
    separator: str, tmp_path: Path, prepared: Callable[..., Any]
) -> None:
    data = tmp_path / f"ro{separator}ws.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows(separator)]
    lines[7] = json.dumps({"messages": [{"role": f"a{separator}b", "content": "c"}]}, ensure_ascii=False)
    data.write_bytes("\n".join(lines).encode())
    run = prepared(data)
    [said] = [json.loads(line) for line in (run.folder / "rejected.jsonl").read_bytes().split(b"\n") if line]
    assert (said["file"], said["line"]) == (str(data), 8) and "unknown role" in said["reason"]
    assert "unknown role" in run.report


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
def test_scores_are_read_back_and_reported(separator: str, tmp_path: Path) -> None:
    answer = Answer("id", f"asked{separator}more", f"right{separator}", f"{separator}said", {"exact_match": 0.0})
    scores = Scores.from_rows([("id", f"g{separator}", f"s{separator}x", 1.0, 1, 1, 1)])
    models = [ScoredModel(name, scores, [answer, answer]) for name in ("base", "tuned")]
    score_table.write(str(tmp_path / "scores"), models)
    read = [score_table.read(str(tmp_path / "scores"), model.name) for model in models]
    assert [model.answers for model in read] == [[answer, answer]] * 2
    assert read[1].scores.slice.tolist() == [f"s{separator}x"]
    verdict = gate.Verdict(False, f"because{separator}so", [])
    evaluation_report.write(EvaluateConfig(), verdict, read, [], str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_bytes().decode()
    assert f"because{separator}so" in page and f"asked{separator}more" in page


@pytest.mark.parametrize("separator", SEPARATORS[:-2], ids=ascii)
def test_what_is_wrong_is_said_to_the_end(
    separator: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"data a{separator}b.jsonl: nothing there"
    assert first_line(ValueError(told + "\nmore")) == told
    monkeypatch.setenv(runtime.FORMAT_VARIABLE, "json")
    with pytest.raises(SystemExit), runtime.step("prepare_dataset"):
        raise InputError(told)
    [line] = [line for line in capsys.readouterr().out.split("\n") if line]
    assert (runtime.parse(line) or {})["message"] == told


def test_no_code_cuts_text_at_other_characters() -> None:
    for path in [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        assert ".splitlines(" not in path.read_text(), path
