"""The models that are compared, loaded one after another, each scored on the same rows."""

import gc
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, lora, stop_tokens
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.registry import champion
from qlora_pipelines.components.core.runtime import load_libraries, log
from qlora_pipelines.components.core.store import attempts, copies
from qlora_pipelines.components.evaluate_model import (
    gate,
    generation,
    lm_tasks,
    offloading,
    prompts,
    question_swap,
    scoring,
)
from qlora_pipelines.components.evaluate_model.score_table import ScoredModel, Scores


def base_and_adapter(
    config: EvaluateConfig, samples: Sequence[Sample], base: Path, adapter: str, found: champion.Champion | None
) -> tuple[ScoredModel, ScoredModel, gate.Champion | None]:
    """The base in 4 bit, the adapter on it, and the champion.

    Args:
        config: the step's options.
        samples: the held-out rows.
        base: folder of the base.
        adapter: folder of the adapter.
        found: the champion in MLflow, if there is one.

    Raises:
        InputError: a loss that is not a number, or files that do not fit together.
    """
    load_libraries("peft")
    log("loading the base in 4 bit")
    trained = attempts.read(adapter).info
    model = loading.load_quantized(base, Quantization(**trained["quantization"])).eval()
    tokenizer = _tokenizer(base, adapter)
    model.generation_config.eos_token_id = stop_tokens.of_folder(base, tokenizer)
    prompted = prompts.with_baseline_messages(config.baseline_messages, samples, tokenizer)
    reference = score_model("base", config, model, tokenizer, prompted, swaps=True)
    tuned = lora.load(model, adapter).eval()
    candidate = score_model("tuned", config, tuned, tokenizer, samples, swaps=True)
    today = None
    if found and (stored := found.adapter_for(trained)):
        with tempfile.TemporaryDirectory() as folder, lora.targets_as_named():
            tuned.load_adapter(str(copies.fetch_work(stored, Path(folder))), adapter_name="champion")
        tuned.set_adapter("champion", inference_mode=True)
        today = gate.Champion(score_model(found.name, config, tuned.eval(), tokenizer, samples), same_tokens=True)
    del model, tuned
    _free()
    if found and today is None:
        today = _merged_champion(config, samples, found, tokenizer)
    return reference, candidate, today


def _tokenizer(base: Path, adapter: str) -> Any:
    """The tokenizer that training used: the adapter's, whose chat template may be another, or else the base's."""
    return loading.load_tokenizer(Path(adapter) if Path(adapter, "tokenizer_config.json").is_file() else base)


def on_original(config: EvaluateConfig, samples: Sequence[Sample], base: Path, adapter: str) -> ScoredModel | None:
    """The adapter on the base in 16 bit, scores only; None where that is offloaded, and this adapter cannot be."""
    log("loading the base in 16 bit")
    with offloading.load_16bit(base) as (model, offloaded):
        if offloaded and not offloading.can_attach(adapter):
            log("this adapter needs its base whole, which does not fit the GPU: it is not scored on the original")
            return None
        tuned = offloading.attach(model, adapter, offloaded)
        tokenizer = _tokenizer(base, adapter)
        found = score_model("tuned on the original", config, tuned, tokenizer, samples, answers=False)
        del model, tuned
    _free()
    return found


def merged(config: EvaluateConfig, samples: Sequence[Sample], folder: Path, name: str = "merged") -> ScoredModel:
    """A merged model in 16 bit."""
    log(f"loading the {name} model")
    tokenizer = loading.load_tokenizer(folder)
    with offloading.load_16bit(folder) as (model, offloaded):
        model.generation_config.eos_token_id = stop_tokens.of_folder(folder, tokenizer)
        return score_model(name, config, model.eval(), tokenizer, samples, answers=not offloaded)


def _merged_champion(
    config: EvaluateConfig, samples: Sequence[Sample], found: champion.Champion, own: Any
) -> gate.Champion:
    """A champion of another base, through its merged files, on the rows whose text its tokenizer keeps."""
    if found.merged is None:
        raise InputError(
            f"{found.name} has another base, and its merged model is gone: put it back, or move the alias champion"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = copies.fetch_work(found.merged, Path(scratch)) / "model"
        tokenizer = loading.load_tokenizer(folder)
        same = loading.tokenizer_digest(tokenizer) == loading.tokenizer_digest(own)
        comparable = samples if same else prompts.reencode(samples, own, tokenizer)
        if not comparable:
            raise InputError(
                f"{found.name} writes none of the {len(samples)} rows with the same text: they cannot be compared"
            )
        model = merged(config, comparable, folder, found.name)
    _free()
    return gate.Champion(model, same)


def score_model(
    name: str,
    config: EvaluateConfig,
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    *,
    answers: bool = True,
    swaps: bool = False,
) -> ScoredModel:
    """Scores, answers and tasks of one model.

    Args:
        name: what the report calls it.
        config: the step's options.
        model: in eval mode.
        tokenizer: its tokenizer.
        samples: the rows, encoded with it.
        answers: whether it generates answers and does lm-eval's tasks.
        swaps: whether answers are also scored after another row's question.

    Raises:
        InputError: a loss that is not a number.
    """
    device = loading.device()
    nlls = scoring.score(model, [sample.encoded for sample in samples], config.eval_batch_tokens, device, name)
    rows = []
    for sample, (nll, right) in zip(samples, nlls, strict=True):
        if not math.isfinite(nll):
            raise InputError(f"{name} gives a loss that is not a number on row {sample.id[:12]}: its weights are bad")
        length = len(prompts.supervised_text(tokenizer, sample.encoded).encode())
        tokens = sample.encoded.supervised
        rows.append((sample.id, sample.group or sample.id, sample.slice, nll, tokens, length, right))
    # By id, which is a hash: the first rows are a sample without a seed.
    asked = sorted(samples, key=lambda sample: sample.id)[: config.generation_rows if answers else 0]
    generated = generation.generate(model, tokenizer, asked, config, name)
    tasks = config.lm_eval_tasks if answers else []
    figures = lm_tasks.run(model, tokenizer, tasks, config.eval_batch_size) if tasks else {}
    swapped = config.swapped_rows if swaps else 0
    swap = question_swap.score(model, samples, swapped, config.eval_batch_tokens, device, name)
    scored = ScoredModel(name, Scores.from_rows(rows), generated, figures, swap)
    share = f", right answers {scored.mean('exact_match'):.0%} of {len(generated)}" if generated else ""
    log(f"{name}: loss {scored.scores.loss:.4f}{share}")
    if generated and not any(answer.answer.strip() for answer in generated):
        log(f"{name} generated nothing: every one of its {len(generated)} answers is empty")
    return scored


def _free() -> None:
    import torch

    gc.collect()
    if loading.on_gpu():
        torch.cuda.empty_cache()
