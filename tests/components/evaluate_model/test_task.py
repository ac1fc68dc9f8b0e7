import html
import json
from pathlib import Path

import pytest

from components.core import chat, models
from components.core.config import EvaluateConfig
from components.core.dataset import Sample
from components.core.errors import InputError
from components.evaluate_model import task
from components.evaluate_model.scoring import matches, score
from tests.components.conftest import TinyRun


@pytest.fixture(scope="module")
def judged(tiny_run: TinyRun, adapter: Path, tiny_model: Path) -> task.Result:
    return task.run(
        tiny_run.config.for_step("evaluate_model"),
        eval_set=str(tiny_run.folder / "eval.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        adapter=str(adapter),
        scores=str(tiny_run.folder / "scores.json"),
        report=str(tiny_run.folder / "tuned.html"),
    )


def test_a_trained_adapter_passes(judged: task.Result, tiny_run: TinyRun) -> None:
    assert judged.passed and judged.reason.startswith("Passed: ")
    assert judged.loss < judged.reference_loss
    base, tuned = json.loads((tiny_run.folder / "scores.json").read_text())
    assert [item["id"] for item in base["scores"]] == [item["id"] for item in tuned["scores"]]
    assert len(tuned["answers"]) == 4
    assert html.escape(judged.reason) in (tiny_run.folder / "tuned.html").read_text()


def test_an_adapter_that_learned_nothing_fails(
    tiny_run: TinyRun, adapter: Path, tiny_model: Path, tmp_path: Path
) -> None:
    import safetensors.torch

    idle = tmp_path / "idle"
    idle.mkdir()
    for file in adapter.iterdir():
        (idle / file.name).write_bytes(file.read_bytes())
    weights = safetensors.torch.load_file(idle / "adapter_model.safetensors")
    still = {name: value * 0 if "lora_B" in name else value for name, value in weights.items()}
    safetensors.torch.save_file(still, idle / "adapter_model.safetensors", metadata={"format": "pt"})
    result = task.run(
        EvaluateConfig(generation_rows=0),
        eval_set=str(tiny_run.folder / "eval.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        adapter=str(idle),
        scores=str(tmp_path / "scores.json"),
        report=str(tmp_path / "report.html"),
    )
    assert not result.passed and result.reason.startswith("Failed: ")
    assert result.exact_match == -1


def test_the_merged_model_is_judged_against_the_adapter(
    judged: task.Result, tiny_run: TinyRun, merged_uri: str, tiny_model: Path, tmp_path: Path
) -> None:
    result = task.run(
        tiny_run.config.for_step("evaluate_model"),
        eval_set=str(tiny_run.folder / "eval.parquet"),
        dataset_digest=tiny_run.data.dataset_digest,
        base_uri=str(tiny_model),
        merged_uri=merged_uri,
        adapter_scores=str(tiny_run.folder / "scores.json"),
        scores=str(tmp_path / "scores.json"),
        report=str(tmp_path / "report.html"),
    )
    assert result.passed
    assert result.reference_loss == pytest.approx(judged.loss)
    assert result.loss == pytest.approx(judged.loss, abs=0.01)


def test_scores_are_those_of_the_plain_loss(tiny_model: Path) -> None:
    """Batched, sorted, the head on the last positions only: the same as one row at a time with all logits."""
    import torch

    tokenizer, model = models.load_tokenizer(tiny_model), models.load_16bit(tiny_model).float().eval()
    rows = [[{"role": "user", "content": "cat " * n}, {"role": "assistant", "content": "mat two"}] for n in (1, 5, 9)]
    samples = [Sample(str(i), row, chat.encode(tokenizer, row, 64)) for i, row in enumerate(rows)]
    for found, sample in zip(score(model, samples, 2, tokenizer.pad_token_id, "tiny"), samples, strict=True):
        ids, labels = (torch.tensor([values]) for values in (sample.encoded.input_ids, sample.encoded.labels))
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss.item()
        assert found.tokens == sample.encoded.supervised
        assert found.nll / found.tokens == pytest.approx(loss, rel=1e-5)


def test_scores_of_other_rows_are_refused(
    judged: task.Result, tiny_run: TinyRun, merged_uri: str, tmp_path: Path
) -> None:
    scores = json.loads((tiny_run.folder / "scores.json").read_text())
    scores[1]["scores"].pop()
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    with pytest.raises(InputError, match="they are of other rows than the evaluation set"):
        task.run(
            EvaluateConfig(),
            eval_set=str(tiny_run.folder / "eval.parquet"),
            dataset_digest=tiny_run.data.dataset_digest,
            base_uri="",
            merged_uri=merged_uri,
            adapter_scores=str(tmp_path / "scores.json"),
            scores=str(tmp_path / "out.json"),
            report=str(tmp_path / "report.html"),
        )


def test_answers_are_compared_as_json_where_the_reference_is_json() -> None:
    assert matches('Sure!\n```json\n{"b": 2, "a": 1}\n```', '{"a": 1, "b": 2}')
    assert not matches('{"a": 1}', '{"a": 1, "b": 2}')
    assert not matches("no braces", '{"a": 1}')
    assert matches(" yes \n", "yes") and not matches("yes, it is", "yes")


def test_the_base_is_asked_with_its_own_prompt(tiny_model: Path) -> None:
    tokenizer = models.load_tokenizer(tiny_model)
    row = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": "cat"},
        {"role": "assistant", "content": "mat"},
    ]
    example = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    sample = Sample("1", row, chat.encode(tokenizer, row, 64))
    (asked,) = task._for_base(EvaluateConfig(baseline_messages=example), [sample], tokenizer)
    assert [turn["content"] for turn in asked.messages] == ["one", "two", "cat", "mat"]
    assert asked.encoded.supervised == sample.encoded.supervised, "the example's answer is not scored"
