"""Scores a model on the held-out rows next to what it must beat, and decides whether it goes on.

Called twice in a run: for the adapter, against its base and today's champion; later for the merged model, against the
adapter. Differences are judged by a paired bootstrap over groups of rows, so that noise passes no gate.
"""

import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model, loading
from qlora_pipelines.components.core.registry import champion, integrity, manifest
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.core.store import attempts, keys, outcomes, outputs, storage
from qlora_pipelines.components.evaluate_model import evaluation_report, gate, lm_tasks, score_table, scored_models
from qlora_pipelines.components.evaluate_model.score_table import ScoredModel

Config = EvaluateConfig
Judged = tuple[list[ScoredModel], gate.Verdict, str]
"""The scored models, first the reference, then the candidate; the verdict on the candidate; and what to merge into."""
TOLD = ("passed", "reason", "loss", "reference_loss", "exact_match", "reference_exact_match")
"""The results that a notification of the run may have."""


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


def shown(result: Result) -> dict[str, float]:
    """A result as KFP keeps metrics, for the comparison of runs: numbers only, one per name.

    KFP fails a step whose metrics have anything else. The texts are among the step's results and in its report.
    """
    found = {**json.loads(result.figures), **result._asdict(), "passed": float(result.passed)}
    return {name: value for name, value in found.items() if isinstance(value, (int, float)) and math.isfinite(value)}


def run(
    config: EvaluateConfig,
    *,
    eval_set: str,
    dataset_digest: str,
    base_uri: str,
    scores: str,
    report: str,
    adapter: str = "",
    adapter_digest: str = "",
    merged_uri: str = "",
    merged_digest: str = "",
    adapter_scores: str = "",
    model_name: str = "",
    champion_version: str = "",
    model_key: str = "",
) -> Result:
    """Judges the adapter, or, where `merged_uri` is given, the merged model against the adapter.

    With `model_key`, an evaluation of the same model by the same rows, options and rivals is found in the store.

    Args:
        config: the step's options.
        eval_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        scores: folder to write: every model's scores and answers, row by row.
        report: HTML page to write.
        adapter: folder of the adapter, to judge it.
        adapter_digest: sha256 of the adapter's manifest, as train_qlora returned it; checked.
        merged_uri: folder of the merged model, to judge that.
        merged_digest: sha256 of the merged model's manifest, as dequantize_and_merge returned it; checked.
        adapter_scores: what the adapter's evaluation wrote as `scores`, to compare the merged model with.
        model_name: name of the registered model in MLflow, to compare the adapter with its champion.
        champion_version: version of that name to compare with; empty is none.
        model_key: training_key of the adapter, or merge_key of the merged model; the evaluation is kept in the store
            under it; empty: it is neither looked for nor kept.

    Raises:
        InputError: data or a model of another digest or key, a model whose loss is not a number, a champion whose files
            are gone.
    """
    samples = tokenized.read(eval_set, dataset_digest)
    if not samples:
        raise InputError("the evaluation set has no rows: give eval_dataset_uri, or raise prepare_dataset.eval_share")
    given = ("merged model", merged_uri, merged_digest) if merged_uri else ("adapter", adapter, adapter_digest)
    what, uri, digest = given
    work = integrity.read(uri, digest, what)
    found = None if merged_uri else _champion(model_name, champion_version, work)  # before anything is loaded
    written, key_uri = {"scores": scores, "report": report}, ""
    if model_key and lm_tasks.are_names(config.lm_eval_tasks):
        if model_key != (known := work.info.get("merge_key" if merged_uri else "training_key")):
            raise InputError(f"model_key is {model_key}, and the {what} was made under {known}; give that, or none")
        key = keys.evaluation_key(
            config,
            dataset_digest=dataset_digest,
            side=tokenized.side(eval_set),
            base_revision=work.info.get("base_revision", ""),
            model_digest=digest,
            compared_with=_compared_with(found, work, adapter_scores if merged_uri else ""),
        )
        key_uri = storage.join(storage.root(), "evaluations", model_key, key)
        if finished := outputs.restore(key_uri, written, Result._fields):
            log(finished["reason"])
            outcomes.tell(model=what, **{name: finished[name] for name in TOLD})
            return Result(**finished)
    lm_tasks.check(config.lm_eval_tasks)
    with loading.hidden_gpus(config.use_cpu), tempfile.TemporaryDirectory() as folder:
        if merged_uri:
            models, verdict, merge_base = _judge_merged(config, samples, work, Path(folder), adapter_scores)
        else:
            base = base_model.fetch(base_uri, Path(folder, "base"), str(work.info.get("base_revision", "")))
            models, verdict, merge_base = _judge_adapter(config, samples, base, work, Path(folder, "adapter"), found)
    score_table.write(scores, models, samples)
    evaluation_report.write(config, verdict, models, samples, report)
    log(verdict.reason)
    reference, candidate, *_ = models
    result = Result(
        passed=verdict.passed,
        reason=verdict.reason,
        loss=candidate.scores.loss,
        reference_loss=reference.scores.loss,
        exact_match=candidate.mean("exact_match"),
        reference_exact_match=reference.mean("exact_match"),
        merge_base=merge_base,
        figures=json.dumps(gate.figures(verdict, reference, candidate, config)),
    )
    if key_uri:
        outputs.keep(key_uri, written, result._asdict())
    outcomes.tell(model=what, **{name: getattr(result, name) for name in TOLD})
    return result


def _compared_with(found: champion.Champion | None, work: attempts.Finished, adapter_scores: str) -> str:
    """Names what the model is compared with besides its base, for the key."""
    if adapter_scores:
        return keys.scores_digest({entry.path: entry.etag for entry in storage.listing(adapter_scores)})
    return found.digest(work.info) if found else ""


def _champion(model_name: str, version: str, trained: attempts.Finished) -> champion.Champion | None:
    """Today's champion, unless there is none or it is the model to judge."""
    found = champion.find(model_name, version) if version else None
    if found and found.is_trained_as(trained.info):
        log(f"{found.name} came out of this very training: there is nothing to compare")
        return None
    return found


def _judge_adapter(
    config: EvaluateConfig,
    samples: list[Sample],
    base: Path,
    work: attempts.Finished,
    folder: Path,
    found: champion.Champion | None,
) -> Judged:
    with integrity.verified_folder(work, folder, "adapter") as verified:
        adapter = str(verified.folder)
        reference, candidate, today = scored_models.base_and_adapter(config, samples, base, adapter, found)
        verdict = gate.judge_adapter(reference, candidate, today, config)
        models = [reference, candidate, *([today.model] if today else [])]
        merge_base = "dequantized"
        if config.score_original and verdict.passed:
            if original := scored_models.on_original(config, samples, base, adapter):
                models.append(original)
                merge_base = gate.choose_merge_base(candidate.scores, original.scores, config)
            log(f"the adapter is to be merged into the {merge_base} base")
        verified.check_unchanged()
    return models, verdict, merge_base


def _judge_merged(
    config: EvaluateConfig, samples: list[Sample], work: attempts.Finished, folder: Path, adapter_scores: str
) -> Judged:
    reference = score_table.read(adapter_scores, "tuned")
    if set(reference.scores.id.tolist()) != {sample.id for sample in samples}:
        raise InputError(f"scores {adapter_scores}: they are of other rows than the evaluation set")
    with integrity.verified_folder(work, folder, "merged model", manifest.is_added) as verified:
        candidate = scored_models.merged(config, samples, verified.folder / manifest.MODEL)
        verified.check_unchanged()
    return [reference, candidate], gate.judge_merged(reference, candidate, config), "dequantized"
