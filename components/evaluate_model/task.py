"""Scores a model on the held-out rows beside what it must beat, and decides whether it goes on.

Called twice in a run: the adapter against the base, later the merged model against the adapter.
"""

import dataclasses
import json
import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.core import attempts, chat, dataset, models, storage
from components.core.config import EvaluateConfig
from components.core.dataset import Sample
from components.core.errors import InputError
from components.core.quantization import Quantization
from components.core.report import Report
from components.core.steps import log
from components.evaluate_model import gate
from components.evaluate_model.scoring import Answer, Score, generate, score

Config = EvaluateConfig
SAMPLES = 8


class Result(NamedTuple):
    """The verdict, and the figures of the model and of its reference: loss in nats, share of right answers.

    The reference is the base where the adapter is judged, the adapter where the merged model is. Where no answer was
    generated, the shares are -1.
    """

    passed: bool
    reason: str
    loss: float
    reference_loss: float
    exact_match: float
    reference_exact_match: float


@dataclasses.dataclass(frozen=True)
class Subject:
    """One model's scores and answers."""

    name: str
    scores: list[Score]
    answers: list[Answer]

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats over all supervised tokens."""
        return sum(item.nll for item in self.scores) / sum(item.tokens for item in self.scores)

    @property
    def exact_match(self) -> float:
        """Share of right answers, or -1 where none was generated."""
        return sum(item.correct for item in self.answers) / len(self.answers) if self.answers else -1.0


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
) -> Result:
    """Judges the adapter against the base, or, where `merged_uri` is given, the merged model against the adapter.

    Args:
        config: the step's options.
        eval_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        scores: JSON file to write: every subject's scores and answers, row by row.
        report: HTML page to write.
        adapter: folder of the adapter, to judge it.
        merged_uri: folder of the merged model, to judge that.
        adapter_scores: what the adapter's evaluation wrote as `scores`, to compare the merged model with.

    Raises:
        InputError: data of another digest, or a model whose loss is no number.
    """
    samples = dataset.read(eval_set, dataset_digest)
    with tempfile.TemporaryDirectory() as folder:
        if merged_uri:
            reference = _load(adapter_scores, "tuned", samples)
            subject = _merged(config, samples, storage.download(merged_uri, Path(folder)) / "model")
            verdict = gate.merged_against_adapter(subject.loss, reference.loss, config)
        else:
            reference, subject = _base_and_tuned(config, samples, storage.download(base_uri, Path(folder)), adapter)
            verdict = gate.tuned_against_base(subject.loss, reference.loss, config)
    log(verdict.reason)
    subjects = [reference, subject]
    storage.write_bytes(scores, json.dumps([dataclasses.asdict(item) for item in subjects], indent=1).encode())
    _report(subjects, verdict, len(samples), report)
    return Result(
        passed=verdict.passed,
        reason=verdict.reason,
        loss=subject.loss,
        reference_loss=reference.loss,
        exact_match=subject.exact_match,
        reference_exact_match=reference.exact_match,
    )


def _base_and_tuned(config: EvaluateConfig, samples: list[Sample], base: Path, adapter: str) -> tuple[Subject, Subject]:
    from peft import PeftModel

    log("loading the base in NF4")
    trained = attempts.read(adapter).info
    model = models.load_quantized(base, Quantization(**trained["quantization"])).eval()
    tokenizer = models.load_tokenizer(base)
    reference = _subject("base", config, model, tokenizer, _for_base(config, samples, tokenizer))
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    return reference, _subject("tuned", config, tuned, tokenizer, samples)


def _merged(config: EvaluateConfig, samples: list[Sample], folder: Path) -> Subject:
    log("loading the merged model")
    return _subject("merged", config, models.load_16bit(folder).eval(), models.load_tokenizer(folder), samples)


def _subject(name: str, config: EvaluateConfig, model: Any, tokenizer: Any, samples: list[Sample]) -> Subject:
    scores = score(model, samples, config.eval_batch_size, tokenizer.pad_token_id, name)
    # By id, which is a hash: the first rows are a sample without a seed.
    asked = sorted(samples, key=lambda sample: sample.id)[: config.generation_rows]
    answers = generate(model, tokenizer, asked, config.eval_batch_size, config.max_new_tokens, name)
    subject = Subject(name, scores, answers)
    right = f", right answers {subject.exact_match:.0%} of {len(answers)}" if answers else ""
    log(f"{name}: loss {subject.loss:.4f}{right}")
    return subject


def _for_base(config: EvaluateConfig, samples: list[Sample], tokenizer: Any) -> list[Sample]:
    """The rows as the base is asked: with schema and examples, where the run gives a prompt that holds them.

    The supervised tokens stay the same, so the losses can be compared.
    """
    before = config.baseline_messages
    if not before:
        return samples
    asked = []
    for sample in samples:
        if not sample.messages:
            asked.append(sample)
            continue
        messages = [*before, *(message for message in sample.messages if message["role"] != "system")]
        encoded = chat.encode(tokenizer, messages, max_length=2**31 - 1, context=len(before), tools=sample.tools)
        asked.append(dataclasses.replace(sample, messages=messages, encoded=encoded))
    return asked


def _load(path: str, name: str, samples: list[Sample]) -> Subject:
    for entry in json.loads(storage.read_bytes(path)):
        if entry["name"] == name:
            scores = [Score(**item) for item in entry["scores"]]
            if {item.id for item in scores} != {sample.id for sample in samples}:
                raise InputError(f"scores {path}: they are of other rows than the evaluation set")
            return Subject(name, scores, [Answer(**item) for item in entry["answers"]])
    raise InputError(f"scores {path}: they hold no {name} model")


def _report(subjects: list[Subject], verdict: gate.Verdict, rows: int, path: str) -> None:
    reference, subject = subjects
    report = Report(f"Evaluation: {subject.name} against {reference.name}", f"On {rows} held-out rows.")
    report.verdict(verdict.passed, verdict.reason)
    asked = len(subject.answers)
    report.table(
        ["", "loss, nats a token", "perplexity", f"right answers of {asked}"],
        [
            (item.name, item.loss, math.exp(item.loss), f"{item.exact_match:.0%}" if item.answers else "not asked")
            for item in subjects
        ],
    )
    if asked:
        report.section("Answers", "The rows answered wrongly come first.")
        beside = {item.id: item for item in reference.answers}
        for answer in sorted(subject.answers, key=lambda item: item.correct)[:SAMPLES]:
            report.block(answer.prompt)
            report.table(
                ["", ""],
                [
                    ("reference", answer.reference),
                    (reference.name, beside[answer.id].answer),
                    (subject.name, answer.answer),
                ],
            )
    report.write(path)
