"""A model that would never stop is found out by the plan."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data.chat_template import Encoded
from qlora_pipelines.components.plan_run import preflight, stopping
from tests.components.dequantize_and_merge.test_files import change
from tests.conftest import CHAT_TEMPLATE, conversation, write_jsonl

NO_MARK = CHAT_TEMPLATE.replace("<|im_end|>", "")


def findings(place: Path, base: Path, *, text: bool = False) -> set[tuple[str, str]]:
    """Level and text of all that the plan finds of tokenizer and data."""
    rows = [{"text": f"the cat {n}"} if text else conversation(f"question {n}", "cat") for n in range(20)]
    data = write_jsonl(place / "rows.jsonl", rows)
    config = {"base_model": str(base), "dataset_uri": str(data), "model_name": "tiny", "max_length": 64}
    checks = preflight.run(PlacedRun.parse(**config), place)
    return {(found.level, found.text) for found in checks.findings if found.subject in ("tokenizer", "data")}


@pytest.fixture
def make(tiny_model: Path, place: Path) -> Any:
    """A copy of the tiny model with another template, and other ids and tokens for its end."""

    def base(template: str = CHAT_TEMPLATE, **ends: Any) -> Path:
        folder = Path(shutil.copytree(tiny_model, place / "base"))
        (folder / "chat_template.jinja").write_text(template)
        for file in ("config", "generation_config", "tokenizer_config"):
            if file in ends:
                change(folder / f"{file}.json", **ends[file])
        return folder

    return base


ID = {"eos_token_id": None}


def test_no_end_at_all_is_refused(make: Any, place: Path) -> None:
    base = make(NO_MARK, config=ID, generation_config=ID, tokenizer_config={"eos_token": None})
    fatal = [text for level, text in findings(place, base) if level == "fatal"]
    assert len(fatal) == 1
    assert fatal[0].startswith(
        f"base model {base}: nothing ends an answer: no eos_token_id in generation_config.json or"
    )


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ({"generation_config": {"eos_token_id": 0}}, "'<|im_end|>', which the base's generation_config.json does not"),
        ({"generation_config": ID}, "'<|im_end|>', which the base's generation_config.json does not"),
        (
            {"tokenizer_config": {"eos_token": "<|endoftext|>"}},
            "'<|endoftext|>', which the base's generation_config.json",
        ),
        ({}, ""),
    ],
    ids=["another end", "no end", "the tokenizer's own", "the same"],
)
def test_an_end_that_the_base_does_not_name_is_said(make: Any, place: Path, ends: Any, said: str) -> None:
    found = findings(place, make(**ends))
    stops = [text for level, text in found if text.startswith("generation also stops at ")]
    assert len(stops) == bool(said) and all(said in text for text in stops)
    assert not [level for level, _ in found if level == "fatal"]


def test_an_end_in_ordinary_text_is_a_warning(make: Any, place: Path) -> None:
    """As where config.json was written for another tokenizer: each answer would be cut at a letter."""
    found = findings(place, make(config={"eos_token_id": 2}, generation_config={"eos_token_id": [2, 40]}))
    (said,) = [text for level, text in found if level == "warning" and "ordinary text" in text]
    assert "eos_token_id of its generation_config.json is ordinary text (" in said


def test_answers_that_no_special_token_ends_are_a_warning(make: Any, place: Path) -> None:
    warning = "train: 20 of the first 20 answers end with no special token: training does not teach the model to stop"
    assert ("warning", warning) in findings(place, make(NO_MARK))


def test_plain_text_ends_with_the_tokenizer_s_end(make: Any, place: Path) -> None:
    assert not [text for level, text in findings(place, make(NO_MARK), text=True) if "answers end" in text]


def test_the_end_of_an_earlier_answer_counts_and_a_cut_one_does_not(make: Any) -> None:
    base = make()
    ended, other, cut = [[-100, 9, 2, 5], [-100, 9, 1, -100, 9, 2], [-100, 9, 9, 9, 9, 9, 9, 9]]
    rows = [Encoded(labels, labels) for labels in (ended[:3], other, cut)]
    (found,) = stopping.check_rows(base, rows, 8)
    assert found == (
        "warning",
        "1 of the first 3 answers end with '<|im_start|>', at which generation does not stop",
    )
    assert list(stopping.check_rows(base, rows[:1], 8)) == []
