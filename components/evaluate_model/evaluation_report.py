"""The evaluation as a page: verdict, scored models, checks, the rows that changed most, answers."""

import json
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.report import Report
from qlora_pipelines.components.evaluate_model import bootstrap, gate, generation
from qlora_pipelines.components.evaluate_model.score_table import ScoredModel

SAMPLES = 8
CHANGES = 10
LONGEST = 400
"""Characters of a text that a table shows."""


def write(
    config: EvaluateConfig, verdict: gate.Verdict, models: Sequence[ScoredModel], samples: Sequence[Sample], path: str
) -> None:
    """Writes the page.

    Args:
        config: the step's options.
        verdict: of the gate.
        models: all scored models; first the reference, then the candidate that is compared with it row by row.
        samples: the rows.
        path: of the HTML file.
    """
    reference, candidate, *_ = models
    rows = candidate.scores
    groups = len(set(rows.group.tolist()))
    report = Report(
        f"Evaluation: {candidate.name} against {reference.name}",
        f"On {len(rows):,} held-out rows in {groups:,} independent groups; bounds hold with"
        f" {config.confidence:.0%} confidence each.",
    )
    report.verdict(verdict.passed, verdict.reason)
    _models(report, config, models)
    _checks(report, verdict)
    _tasks(report, models)
    _changes(report, reference, candidate, samples)
    _answers(report, reference, candidate, samples)
    report.write(path)


def _models(report: Report, config: EvaluateConfig, models: Sequence[ScoredModel]) -> None:
    metrics = list(dict.fromkeys(["exact_match", *config.answer_metrics]))
    lines = []
    for model in models:
        scores = model.scores
        sums = bootstrap.grouped(scores.nll, scores.tokens, scores.group)
        bounds = bootstrap.bounds(sums, 1 - config.confidence)
        lines.append(
            [
                model.name,
                len(scores),
                f"{scores.loss:.4f}",
                f"{bounds.low:.4f} and {bounds.high:.4f}" if bounds else "too few rows",
                math.exp(min(scores.loss, 700.0)),  # e^710 is beyond a float
                f"{scores.bits_per_byte:.4f}",
                f"{scores.token_accuracy:.1%}",
                *(f"{model.mean(metric):.1%}" if model.answers else "not asked" for metric in metrics),
            ]
        )
    head = ["", "rows", "loss, nats per token", "between", "perplexity", "bits per byte", "right tokens"]
    report.table([*head, *(metric.replace("_", " ") for metric in metrics)], lines)
    for model in models:
        empty = sum(not answer.answer.strip() for answer in model.answers)
        if empty:
            report.verdict(False, f"{model.name} generated nothing in {empty} of {len(model.answers)} answers.")


def _checks(report: Report, verdict: gate.Verdict) -> None:
    report.section(
        "What the gate looked at",
        "Positive is better. What the model must show counts at the lower bound; that a slice or the answers became"
        " worse must be shown at the upper one, whose confidence is shared among them.",
    )
    lines = []
    for check in verdict.checks:
        bounds = [f"{value:.4f}" for value in check.interval] if check.interval else ["too few rows", "", ""]
        lines.append([check.name, "passed" if check.passed else "failed", check.groups, *bounds, check.unit])
    report.table(["", "", "groups", "better by", "at least", "at most", "unit"], lines)


def _tasks(report: Report, models: Sequence[ScoredModel]) -> None:
    names = sorted({name for model in models for name in model.tasks})
    if names:
        report.section("Benchmarks", "By lm-eval; they take no part in the verdict.")
        lines = [[name, *(model.tasks.get(name, math.nan) for model in models)] for name in names]
        report.table(["", *(model.name for model in models)], lines)


def _changes(report: Report, reference: ScoredModel, candidate: ScoredModel, samples: Sequence[Sample]) -> None:
    """The rows whose loss changed most, each way, with the answers next to each other."""
    before, after = reference.scores.only(candidate.scores.id), candidate.scores.only(reference.scores.id)
    old, new = (scores.nll / np.maximum(scores.tokens, 1) for scores in (before, after))
    order = np.argsort(new - old, kind="stable")
    sample = {sample.id: sample for sample in samples}
    answers = [{answer.id: answer.answer for answer in model.answers} for model in (reference, candidate)]
    head = [f"row, loss: {reference.name} → {candidate.name}", "asked", "right answer", reference.name, candidate.name]
    for heading, rows in (
        ("Where it got better", [row for row in order[:CHANGES] if new[row] < old[row]]),
        ("Where it got worse", [row for row in order[::-1][:CHANGES] if new[row] > old[row]]),
    ):
        report.section(heading, f"The {len(rows)} largest changes, in nats per token." if rows else "Nowhere.")
        lines = []
        for row in rows:
            name, part = str(after.id[row]), after.slice[row]
            facts = [
                name[:12],
                f"{old[row]:.4f}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{new[row]:.4f}",
                f"{new[row] - old[row]:+.4f}",
                *([f"slice {part}"] if part else []),
                *(f"{column} {_shortened(text)}" for column, text in _extra(sample[name])),
            ]
            texts = [_question(sample[name]), _right_answer(sample[name])]
            texts += [found.get(name, "not asked") for found in answers]
            lines.append([Markup("<br>").join(facts), *map(_shortened, texts)])
        if lines:
            report.table(head, lines)


def _right_answer(sample: Sample) -> str:
    """The last answer of a row that is trained; calls of tools as JSON."""
    if not sample.messages:
        return ""
    message = sample.messages[generation.last_answer(sample)]
    return str(message["content"] or json.dumps(message.get("tool_calls", []), ensure_ascii=False))


def _answers(report: Report, reference: ScoredModel, candidate: ScoredModel, samples: Sequence[Sample]) -> None:
    if not candidate.answers:
        return
    report.section("Answers", "The rows answered wrongly come first.")
    before = {answer.id: answer.answer for answer in reference.answers}
    extra = {sample.id: _extra(sample) for sample in samples}
    for answer in sorted(candidate.answers, key=lambda item: item.scores["exact_match"])[:SAMPLES]:
        report.block(answer.prompt)
        lines = [("reference", answer.reference), (reference.name, before.get(answer.id, "not asked"))]
        shown = [(column, _shortened(text)) for column, text in extra.get(answer.id, [])]
        report.table(["", ""], [*lines, (candidate.name, answer.answer), *shown])


def _question(sample: Sample) -> str:
    """A row's last question, or '' where it is plain text."""
    asked = [str(message.get("content") or "") for message in sample.messages if message["role"] == "user"]
    return asked[-1] if asked else ""


def _extra(sample: Sample) -> list[tuple[str, str]]:
    """A row's extra columns, as far as it has them, as text."""
    present = ((name, value) for name, value in sample.extra.items() if value is not None)
    return [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in present]


def _shortened(text: str) -> str:
    """The end of a text: of a prompt, that is where the question is."""
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
