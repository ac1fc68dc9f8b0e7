"""What a row says beyond its turns is obeyed, or told with how many rows say it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.data.chat_template import IGNORED
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from tests.components.prepare_dataset import templates
from tests.components.prepare_dataset.test_task import distinct
from tests.conftest import write_jsonl


@pytest.fixture(autouse=True)
def _store(place: Path) -> None:
    """A store of the test's own."""


def test_rows_that_are_marked_as_bad_are_left_out_and_do_not_stop_the_run(tmp_path: Path, prepared: Callable) -> None:
    rows = [
        {"prompt": row["messages"][0]["content"], "completion": row["messages"][1]["content"], "label": place % 2 == 1}
        for place, row in enumerate(distinct(60))
    ]
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for data in (write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "rows.parquet"):
        run = prepared(data, near_duplicate_threshold=0.0)
        assert (run.result.train_rows + run.result.eval_rows, run.result.rejected_rows) == (30, 30)
        kept = {sample.messages[1]["content"] for side in ("train", "eval") for sample in run.side(side)}
        assert kept <= {row["completion"] for row in rows if row["label"]}
        assert (
            "left out: the rows ask for it" in run.report
            and "label is false: the answer is marked as bad" in run.report
        )


def test_turns_that_are_marked_are_read_and_not_trained(tmp_path: Path, prepared: Callable, tiny_model: Path) -> None:
    rows = distinct(40)
    for row in rows:
        row["messages"] = [*row["messages"], {"role": "user", "content": "again"},
                           {"role": "assistant", "content": "system", "weight": 0}]  # fmt: skip
    tokenizer = loading.load_tokenizer(tiny_model)
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", rows))
    for sample in run.side("train"):
        supervised = tokenizer.decode([label for label in sample.encoded.labels if label != IGNORED])
        assert supervised == f"{sample.messages[1]['content']}<|im_end|>"
    assert "messages.weight marks turns that are not trained" in run.report


def test_a_key_that_nothing_reads_is_told_with_its_rows(
    tmp_path: Path, prepared: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | ({"score": 1} if place < 5 else {}) for place, row in enumerate(distinct(40))]
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert "score is not read: 5 rows, such as rows.jsonl:1, rows.jsonl:2, rows.jsonl:3" in capsys.readouterr().out
    assert "Notes on the rows" in run.report and "rows.jsonl:3" in run.report


def test_a_rejected_row_is_named_by_its_id_and_the_key(tmp_path: Path, prepared: Callable) -> None:
    bad = {"id": "row-7", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", [*distinct(40), bad]), max_rejected_share=0.1)
    assert json.loads(run.rejected) == {
        "file": str(tmp_path / "rows.jsonl"),
        "line": 41,
        "id": "row-7",
        "key": "messages[1].content",
        "reason": "the assistant's content is not text",
    }
    assert "rows.jsonl:41 (row-7)" in run.report


def test_data_that_calls_tools_trains_with_a_template_that_writes_them(tmp_path: Path, prepared: Callable) -> None:
    """In the manner of the glaive function calling data, in ShareGPT's form."""
    tools = json.dumps([{"name": "weather", "description": "today's", "parameters": {"type": "object"}}])
    rows = [
        {"tools": tools, "conversations": [
            {"from": "human", "value": row["messages"][0]["content"]},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
            {"from": "observation", "value": '{"degrees": 21}'},
            {"from": "gpt", "value": row["messages"][1]["content"]},
        ]}
        for row in distinct(40)
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = prepared(data, template=templates.QWEN, max_length=500)
    assert run.result.train_rows + run.result.eval_rows == 40
    with pytest.raises(InputError, match="the chat template does not write tool calls"):
        prepared(data, max_length=500)


def test_a_template_that_prints_the_date_makes_the_same_set_on_any_day(tmp_path: Path, prepared: Callable) -> None:
    dated = "{{ strftime_now('%d %B %Y') }}" + templates.CHATML
    run = prepared(write_jsonl(tmp_path / "rows.jsonl", distinct(40)), template=dated, max_length=200)
    assert "which is always 2026-01-01 here" in run.report
    assert "01 January 2026" in re.sub("<[^>]*>", "", run.report)


def test_tokens_that_span_the_end_of_the_prompt_are_told(tmp_path: Path, prepared: Callable) -> None:
    spaced = (
        "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT: {% else %}{{ m.content }}"
        "<|im_end|>{% endif %}{% endfor %}"
    )
    data = write_jsonl(tmp_path / "rows.jsonl", distinct(40))
    told = "a token spans the end of the prompt and the start of the answer"
    assert told in prepared(data, template=spaced, max_length=200).report
    assert told not in prepared(data).report
