import dataclasses
import json
import random
import shutil
from pathlib import Path

import pytest
from markupsafe import escape

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template, tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.evaluate_model import component as component_module
from qlora_pipelines.components.evaluate_model import score_table, task
from tests.components.conftest import TinyRun
from tests.components.evaluate_model.conftest import Judge, altered


def prepared(folder: Path, samples: list[tokenized.Sample]) -> dict[str, str]:
    """An evaluation set of these rows, and its digest, as `task.run` takes them."""
    import pyarrow as pa

    rows = [
        {
            "id": sample.id,
            "input_ids": sample.encoded.input_ids,
            "labels": sample.encoded.labels,
            "messages": json.dumps(sample.messages),
            "tools": json.dumps(sample.tools),
            "group": sample.group,
            "slice": sample.slice,
        }
        for sample in samples
    ]
    with tokenized.Writer({"eval": str(folder / "rows.parquet")}) as writer:
        if rows:
            writer.write("eval", pa.RecordBatch.from_pylist(rows, schema=tokenized.schema()))
        return {"eval_set": str(folder / "rows.parquet"), "dataset_digest": writer.close()}


def samples(run: TinyRun) -> list[tokenized.Sample]:
    return tokenized.read(str(run.folder / "eval.parquet"), run.data.dataset_digest)


def test_a_trained_adapter_passes(judged: task.Result, tiny_run: TinyRun) -> None:
    assert judged.passed and judged.reason.startswith("Passed: ")
    assert judged.loss < judged.reference_loss and judged.merge_base == "dequantized"
    base, tuned = (score_table.read(str(tiny_run.folder / "scores"), name) for name in ("base", "tuned"))
    assert base.scores.id.tolist() == tuned.scores.id.tolist() == sorted(one.id for one in samples(tiny_run))
    assert base.scores.tokens.tolist() == tuned.scores.tokens.tolist()
    assert tuned.scores.loss == pytest.approx(judged.loss)
    assert len(tuned.answers) == 4
    page = (tiny_run.folder / "tuned.html").read_text()
    assert escape(judged.reason) in page
    first = next(one for one in tuned.answers if one.answer.strip())
    assert page.index("Where it got better") < page.index(f"<td>{escape(first.answer)}</td>")
    figures = json.loads(judged.figures)
    assert figures["better_than_base.low"] <= figures["better_than_base.mean"]


def test_what_is_logged_as_metrics_is_numbers(judged: task.Result) -> None:
    shown = task.shown(judged._replace(reference_loss=float("nan")))
    assert shown["passed"] == 1.0 and shown["loss"] == judged.loss and shown["checks"] >= 1
    assert all(type(value) in (float, int) for value in shown.values())
    assert not {"reason", "merge_base", "reference", "reference_loss"} & shown.keys()
    assert "task.shown(result)" in Path(component_module.__file__).read_text()


def test_an_adapter_that_learned_nothing_fails(judge: Judge, adapter: Path, tmp_path: Path) -> None:
    result = judge(adapter=str(altered(adapter, tmp_path / "idle", lambda name, value: value * ("lora_B" not in name))))
    assert not result.passed and result.reason.startswith("Failed: the tuned loss is")
    assert result.exact_match == -1


def test_an_adapter_with_nan_weights_is_an_error_of_one_line(judge: Judge, adapter: Path, tmp_path: Path) -> None:
    damaged = altered(adapter, tmp_path / "nan", lambda name, value: value * float("nan"))
    with pytest.raises(InputError, match="tuned gives a loss that is not a number on row"):
        judge(adapter=str(damaged))
    assert not (tmp_path / "scores").exists()


def test_training_damaged_by_shuffled_labels_fails_with_the_reason_in_its_report(
    judge: Judge, tiny_run: TinyRun, tiny_model: Path, tmp_path: Path
) -> None:
    """It learns what answers look like, so its loss is far below the base's, and nothing about questions."""
    from qlora_pipelines.components.train_qlora import task as train_qlora

    rows = tokenized.read(str(tiny_run.folder / "train.parquet"), tiny_run.data.dataset_digest)
    tokenizer = loading.load_tokenizer(tiny_model)
    answers = random.Random(0).sample([row.messages[-1] for row in rows], len(rows))
    damaged = []
    for row, answer in zip(rows, answers, strict=True):
        messages = [*row.messages[:-1], answer]
        damaged.append(
            dataclasses.replace(row, messages=messages, encoded=chat_template.encode(tokenizer, messages, 64))
        )
    data = prepared(tmp_path, damaged)
    train_qlora.run(
        tiny_run.config.for_step("train_qlora"),
        train_set=data["eval_set"],
        dataset_digest=data["dataset_digest"],
        base_uri=str(tiny_model),
        base_revision=tiny_run.plan.base_revision,
        training_key="shuffled",
        adapter=str(tmp_path / "adapter"),
        report=str(tmp_path / "training.html"),
    )
    result = judge(adapter=str(tmp_path / "adapter"))
    assert result.loss < result.reference_loss - 1
    assert not result.passed and result.reason.startswith("Failed: the tuned model does not read the question")
    assert escape(result.reason) in (tmp_path / "report.html").read_text()


def test_three_rows_decide_nothing(judge: Judge, tiny_run: TinyRun, tmp_path: Path) -> None:
    result = judge(**prepared(tmp_path, samples(tiny_run)[:3]))
    assert not result.passed
    assert result.reason == "Failed: 3 independent groups of rows are too few to decide, at least 10 are needed."


def test_an_empty_evaluation_set_is_refused(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the evaluation set has no rows"):
        judge(**prepared(tmp_path, []))


def test_a_model_that_generates_nothing_is_reported(
    judge: Judge, tiny_model: Path, adapter: Path, tmp_path: Path
) -> None:
    """The base's first token is always the one that ends an answer."""
    import torch

    model, tokenizer = loading.load_16bit(tiny_model), loading.load_tokenizer(tiny_model)
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.config.tie_word_embeddings = False
        model.model.norm.weight.zero_()
    silent = tmp_path / "silent"
    model.generation_config.eos_token_id = [0, tokenizer.eos_token_id]  # all logits are alike: token 0 is taken
    model.save_pretrained(silent)
    tokenizer.save_pretrained(silent)
    trained, on_silent = attempts.read(str(adapter)), shutil.copytree(adapter, tmp_path / "adapter")
    info = trained.info | {"base_revision": base_model.resolve(str(silent), "")}
    attempts.finish(str(on_silent), info, trained.files)
    config = EvaluateConfig(generation_rows=3, max_new_tokens=4)
    result = judge(config, base_uri=str(silent), adapter=str(on_silent))
    assert not result.passed and result.exact_match == 0
    assert "base generated nothing in 3 of 3 answers." in (tmp_path / "report.html").read_text()


def test_slices_and_groups_of_the_data_are_judged(judge: Judge, tiny_run: TinyRun, tmp_path: Path) -> None:
    rows = [
        dataclasses.replace(sample, group=f"talk {place // 2}", slice="even" if place % 4 < 2 else "odd")
        for place, sample in enumerate(samples(tiny_run))
    ]
    judge(**prepared(tmp_path, rows))
    found = score_table.read(str(tmp_path / "scores"), "tuned").scores
    assert set(found.slice) == {"even", "odd"} and len(set(found.group)) == (len(rows) + 1) // 2
    assert "slice odd against base" in (tmp_path / "report.html").read_text()


def test_the_merged_model_is_judged_against_the_adapter(
    judged: task.Result, judge: Judge, tiny_run: TinyRun, merged_uri: str
) -> None:
    config = tiny_run.config.for_step("evaluate_model")
    result = judge(config, merged_uri=merged_uri, adapter="", adapter_scores=str(tiny_run.folder / "scores"))
    assert result.reference_loss == pytest.approx(judged.loss)
    assert result.loss == pytest.approx(judged.loss, abs=0.01)
    assert result.passed, result.reason


def test_scores_of_other_rows_are_refused(
    judged: task.Result, judge: Judge, tiny_run: TinyRun, merged_uri: str, tmp_path: Path
) -> None:
    data = prepared(tmp_path, samples(tiny_run)[1:])
    with pytest.raises(InputError, match="they are of other rows than the evaluation set"):
        judge(merged_uri=merged_uri, adapter_scores=str(tiny_run.folder / "scores"), **data)
    with pytest.raises(InputError, match="they hold no tuned model"):
        judge(merged_uri=merged_uri, adapter_scores=str(scores_without_tuned(tiny_run, tmp_path)))


def scores_without_tuned(run: TinyRun, folder: Path) -> Path:
    score_table.write(str(folder / "base only"), [score_table.read(str(run.folder / "scores"), "base")])
    return folder / "base only"


def test_the_original_base_is_scored_where_asked_for(judge: Judge, tmp_path: Path) -> None:
    result = judge(EvaluateConfig(generation_rows=0, score_original=True))
    assert result.merge_base in ("dequantized", "original")
    original = score_table.read(str(tmp_path / "scores"), "tuned on the original").scores
    assert original.loss == pytest.approx(result.loss, abs=1), "near, and not the same"
    assert original.loss != result.loss


def test_use_cpu_leaves_a_gpu_alone(judge: Judge, a_gpu: None) -> None:
    assert judge(EvaluateConfig(generation_rows=2, max_new_tokens=2, use_cpu=True)).passed
