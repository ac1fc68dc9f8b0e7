"""Scores a model on the held-out rows beside what it must beat, and decides whether it goes on.

Called twice in a run: for the adapter, against its base and today's champion; later for the merged model, against the
adapter. Differences are judged by a paired bootstrap over groups of rows, so that noise passes no gate.
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.registry import champion
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.evaluate_model import (
    evaluation_report,
    gate,
    generation,
    lm_tasks,
    score_table,
    subjects,
)
from qlora_pipelines.components.evaluate_model.score_table import Subject

Config = EvaluateConfig


class Result(NamedTuple):
    """The verdict, and the figures of the model and of its reference: loss in nats, share of right answers.

    The reference is the base where the adapter is judged, the adapter where the merged model is. Where no answer was
    generated, the shares are -1. `merge_base` says what the adapter should be merged into, `dequantized` or `original`;
    `figures` is a flat JSON object of what the gate saw.
    """

    passed: bool
    reason: str
    loss: float
    reference_loss: float
    exact_match: float
    reference_exact_match: float
    merge_base: str
    figures: str


def shown(result: Result) -> dict[str, float | str]:
    """A result as KFP keeps metrics, for the comparison of runs: texts and numbers only, one a name."""
    plain = {name: value for name, value in result._asdict().items() if name != "figures"}
    found = {name: float(value) if isinstance(value, bool) else value for name, value in plain.items()}
    return {**json.loads(result.figures), **found}


def run(
    config: EvaluateConfig,
    *,
    eval_set: str,
    dataset_digest: str,
    base_uri: str,
    scores: str,
    report: str,
    adapter: str = "",
    merged_uri: str = "",
    adapter_scores: str = "",
    model_name: str = "",
    champion_version: str = "",
) -> Result:
    """Judges the adapter, or, where `merged_uri` is given, the merged model against the adapter.

    Args:
        config: the step's options.
        eval_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        scores: folder to write: every subject's scores and answers, row by row.
        report: HTML page to write.
        adapter: folder of the adapter, to judge it.
        merged_uri: folder of the merged model, to judge that.
        adapter_scores: what the adapter's evaluation wrote as `scores`, to compare the merged model with.
        model_name: name of the registered model in MLflow, to compare the adapter with its champion.
        champion_version: version of that name that is champion; empty is none.

    Raises:
        InputError: data of another digest, a model whose loss is no number, a champion whose files are gone.
    """
    lm_tasks.check(config.lm_eval_tasks)
    samples = tokenized.read(eval_set, dataset_digest)
    if not samples:
        raise InputError("the evaluation set has no rows: give eval_dataset_uri, or raise prepare_dataset.eval_share")
    with tempfile.TemporaryDirectory() as folder:
        if merged_uri:
            result = _merged(config, samples, merged_uri, Path(folder), adapter_scores, (scores, report))
        else:
            against = _champion(model_name, champion_version, adapter)
            base = base_model.fetch(base_uri, Path(folder))
            result = _tuned(config, samples, base, adapter, against, (scores, report))
    log(result.reason)
    return result


def _champion(model_name: str, version: str, adapter: str) -> champion.Champion | None:
    """Today's champion, unless there is none or it is the model to judge; found before anything is scored."""
    found = champion.find(model_name, version) if version else None
    if found and found.is_trained_as(attempts.read(adapter).info):
        log(f"{found.name} came out of this very training: there is nothing to compare")
        return None
    return found


def _tuned(
    config: EvaluateConfig,
    samples: list[Sample],
    base: Path,
    adapter: str,
    against: champion.Champion | None,
    paths: tuple[str, str],
) -> Result:
    reference, subject, beside = subjects.base_and_tuned(config, samples, base, adapter, against)
    verdict = gate.tuned(reference, subject, beside, config)
    others = [beside.subject] if beside else []
    merge_base = "dequantized"
    if config.score_original and verdict.passed:
        if original := subjects.on_original(config, samples, base, adapter):
            others.append(original)
            merge_base = gate.merge_base(subject.scores, original.scores, config)
        log(f"the adapter is to be merged into the {merge_base} base")
    return _finish(config, samples, verdict, [reference, subject, *others], merge_base, paths)


def _merged(
    config: EvaluateConfig,
    samples: list[Sample],
    merged_uri: str,
    folder: Path,
    adapter_scores: str,
    paths: tuple[str, str],
) -> Result:
    reference = score_table.read(adapter_scores, "tuned")
    if set(reference.scores.id.tolist()) != {sample.id for sample in samples}:
        raise InputError(f"scores {adapter_scores}: they are of other rows than the evaluation set")
    subject = subjects.merged(config, samples, storage.download(merged_uri, folder) / "model")
    verdict = gate.merged(reference, subject, config)
    return _finish(config, samples, verdict, [reference, subject], "dequantized", paths)


def _finish(
    config: EvaluateConfig,
    samples: list[Sample],
    verdict: gate.Verdict,
    everyone: list[Subject],
    merge_base: str,
    paths: tuple[str, str],
) -> Result:
    """Writes scores and report; `everyone` starts with the reference and the model judged."""
    reference, subject, *_ = everyone
    folder, report = paths
    score_table.write(folder, everyone)
    texts = {sample.id: (_question(sample), generation.reference(sample)) for sample in samples}
    evaluation_report.write(config, verdict, everyone, texts, report)
    return Result(
        passed=verdict.passed,
        reason=verdict.reason,
        loss=subject.scores.loss,
        reference_loss=reference.scores.loss,
        exact_match=subject.mark("exact_match"),
        reference_exact_match=reference.mark("exact_match"),
        merge_base=merge_base,
        figures=json.dumps(gate.figures(verdict, reference, subject, config)),
    )


def _question(sample: Sample) -> str:
    """What a row asks last, or '' where it is plain text."""
    asked = [str(message.get("content") or "") for message in sample.messages if message["role"] == "user"]
    return asked[-1] if asked else ""
