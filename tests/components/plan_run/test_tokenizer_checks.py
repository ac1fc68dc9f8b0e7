"""A tokenizer with more tokens than its model has embeddings: said by the plan, and no such row is trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.plan_run import preflight
from qlora_pipelines.components.prepare_dataset import task
from tests.components.plan_run.test_preflight import changed_base
from tests.conftest import conversation, write_jsonl

ROWS = [conversation(f"question {number}", f"answer {number}") for number in range(60)]


def base_with(place: Path, tiny_model: Path, *tokens: Any, **named: Any) -> Path:
    """The tiny model with tokens that were added to its tokenizer alone."""
    base = Path(changed_base(place, tiny_model)["base_model"])
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(named)
    tokenizer.save_pretrained(base)
    return base


def findings(place: Path, base: Path, rows: list[dict[str, object]]) -> dict[str, str]:
    config = PlacedRun.parse(
        base_model=str(base),
        dataset_uri=str(write_jsonl(place / "rows.jsonl", rows)),
        model_name="tiny",
        max_length=64,
        gpu_count="0",
    )
    (place / "files").mkdir(exist_ok=True)
    return {found.text: found.level for found in preflight.run(config, place / "files").findings}


def test_tokens_without_embedding_are_named_and_their_rows_rejected(place: Path, tiny_model: Path) -> None:
    base = base_with(place, tiny_model, "<picture>")
    rows = [*ROWS, conversation("what is on <picture>", "a cat")]
    found = findings(place, base, rows)
    text = f"base model {base}: it has no embedding for 1 of its tokenizer's tokens (<picture>): rows that have one are"
    assert found[f"{text} rejected"] == "ok"
    rejected = "has the token <picture>, for which the model has no embedding"
    assert any(f"1 of the first 61 rows cannot be used (row 61: {rejected})" in said for said in found)
    for processes in (1, 2):
        result = task.run(
            task.Config(max_length=64, max_rejected_share=0.1, near_duplicate_threshold=0, processes=processes),
            listing_uri=listing.save(listing.make(str(place / "rows.jsonl"))),
            tokenizer_uri=str(base),
            train_set=str(place / "train.parquet"),
            eval_set=str(place / "eval.parquet"),
            rejected=str(place / "rejected.jsonl"),
            report=str(place / "report.html"),
        )
        assert result.rejected_rows == 1
        [line] = map(json.loads, (place / "rejected.jsonl").read_text().splitlines())
        assert line["line"] == 61 and line["reason"] == rejected


@pytest.mark.parametrize("which", ["eos_token", "pad_token"])
def test_a_special_token_without_embedding_is_fatal(which: str, place: Path, tiny_model: Path) -> None:
    base = base_with(place, tiny_model, **{which: "<new>"})
    assert (
        findings(place, base, ROWS)[
            f"base model {base}: it has no embedding for 1 of its tokenizer's tokens, among them <new>: give it the"
            " tokenizer that it was published with"
        ]
        == "fatal"
    )


def test_a_tokenizer_that_fits_is_not_mentioned(place: Path, tiny_model: Path) -> None:
    assert not any("no embedding" in text for text in findings(place, tiny_model, ROWS))
