"""The models that are judged, loaded one after another, each measured on the same rows."""

import gc
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.registry import champion
from qlora_pipelines.components.core.runtime import load_libraries, log
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.evaluate_model import (
    gate,
    lm_tasks,
    offloading,
    prompts,
    question_swap,
    score_table,
    scoring,
)
from qlora_pipelines.components.evaluate_model.generation import generate
from qlora_pipelines.components.evaluate_model.score_table import Subject


def base_and_tuned(
    config: EvaluateConfig, samples: Sequence[Sample], base: Path, adapter: str, found: champion.Champion | None
) -> tuple[Subject, Subject, gate.Champion | None]:
    """The base in 4 bit, the adapter on it, and the champion.

    Args:
        config: the step's options.
        samples: the held-out rows.
        base: folder of the base.
        adapter: folder of the adapter.
        found: the champion in MLflow, if there is one.

    Raises:
        InputError: a loss that is no number, or files that do not fit together.
    """
    load_libraries("peft")
    from peft import PeftModel

    log("loading the base in 4 bit")
    trained = attempts.read(adapter).info
    model = loading.load_quantized(base, Quantization(**trained["quantization"])).eval()
    tokenizer = loading.load_tokenizer(base)
    own_words = prompts.in_own_words(config.baseline_messages, samples, tokenizer)
    reference = measure("base", config, model, tokenizer, own_words, swapped=True)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    subject = measure("tuned", config, tuned, tokenizer, samples, swapped=True)
    beside = None
    if found and (stored := found.adapter_for(trained)):
        with tempfile.TemporaryDirectory() as folder:
            tuned.load_adapter(str(storage.download(stored.uri, Path(folder))), adapter_name="champion")
        tuned.set_adapter("champion", inference_mode=True)
        beside = gate.Champion(measure(found.name, config, tuned.eval(), tokenizer, samples), same_tokens=True)
    del model, tuned
    _free()
    if found and beside is None:
        beside = _merged_champion(config, samples, found, tokenizer)
    return reference, subject, beside


def on_original(config: EvaluateConfig, samples: Sequence[Sample], base: Path, adapter: str) -> Subject | None:
    """The adapter on the base in 16 bit; scores only; None where it must be spread, and this adapter cannot."""
    log("loading the base in 16 bit")
    with offloading.whole_or_spread(base) as (model, whole):
        if not whole and not offloading.can_be_spread(adapter):
            log("this adapter needs its base whole, which does not fit the GPU: it is not scored on the original")
            return None
        tuned = offloading.attach(model, adapter, whole)
        found = measure("tuned on the original", config, tuned, loading.load_tokenizer(base), samples, answers=False)
        del model, tuned
    _free()
    return found


def merged(config: EvaluateConfig, samples: Sequence[Sample], folder: Path, name: str = "merged") -> Subject:
    """A merged model in 16 bit."""
    log(f"loading the {name} model")
    tokenizer = loading.load_tokenizer(folder)
    with offloading.whole_or_spread(folder) as (model, whole):
        return measure(name, config, model.eval(), tokenizer, samples, answers=whole)


def _merged_champion(
    config: EvaluateConfig, samples: Sequence[Sample], found: champion.Champion, own: Any
) -> gate.Champion:
    """A champion of another base, through its merged files, on the rows that its tokenizer writes alike."""
    if found.merged is None:
        raise InputError(
            f"{found.name} has another base, and its merged model is gone: put it back, or move the alias champion"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = storage.download(found.merged.uri, Path(scratch)) / "model"
        theirs = loading.load_tokenizer(folder)
        same = loading.tokenizer_digest(theirs) == loading.tokenizer_digest(own)
        asked = samples if same else prompts.through(theirs, samples, own)
        if not asked:
            raise InputError(f"{found.name} writes none of the {len(samples)} rows alike: they cannot be compared")
        subject = merged(config, asked, folder, found.name)
    _free()
    return gate.Champion(subject, same)


def measure(
    name: str,
    config: EvaluateConfig,
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    *,
    answers: bool = True,
    swapped: bool = False,
) -> Subject:
    """Scores, answers and tasks of one model.

    Args:
        name: what the report calls it.
        config: the step's options.
        model: in eval mode.
        tokenizer: its tokenizer.
        samples: the rows, encoded with it.
        answers: whether it generates; without, scores only.
        swapped: whether answers are scored after another row's question too.

    Raises:
        InputError: a loss that is no number.
    """
    encoded = [sample.encoded for sample in samples]
    found = scoring.score(model, encoded, config.eval_batch_tokens, loading.device(), name)
    rows = []
    for sample, (nll, right) in zip(samples, found, strict=True):
        if not math.isfinite(nll):
            raise InputError(f"{name} gives a loss that is no number on row {sample.id[:12]}: its weights are spoiled")
        length = len(prompts.supervised_text(tokenizer, sample.encoded).encode())
        tokens = sample.encoded.supervised
        rows.append((sample.id, sample.group or sample.id, sample.slice, nll, tokens, length, right))
    # By id, which is a hash: the first rows are a sample without a seed.
    asked = sorted(samples, key=lambda sample: sample.id)[: config.generation_rows if answers else 0]
    generated = generate(
        model,
        tokenizer,
        asked,
        batch_size=config.eval_batch_size,
        max_new_tokens=config.max_new_tokens,
        wanted=list(config.answer_metrics),
        what=name,
    )
    tasks = config.lm_eval_tasks if answers else []
    figures = lm_tasks.run(model, tokenizer, tasks, config.eval_batch_size) if tasks else {}
    paired = None
    if swapped:
        paired = question_swap.measure(
            model, samples, config.swapped_rows, config.eval_batch_tokens, loading.device(), name
        )
    subject = Subject(name, score_table.table(rows), generated, figures, paired)
    share = f", right answers {subject.mark('exact_match'):.0%} of {len(generated)}" if generated else ""
    log(f"{name}: loss {subject.scores.loss:.4f}{share}")
    if generated and not any(answer.answer.strip() for answer in generated):
        log(f"{name} generated nothing: every one of its {len(generated)} answers is empty")
    return subject


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
