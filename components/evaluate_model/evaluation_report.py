"""The page that says how the model was judged: verdict, subjects, checks, where it changed most, answers."""

import math
from collections.abc import Sequence

import numpy as np

from components.core.config import EvaluateConfig
from components.core.report import Report
from components.evaluate_model import gate
from components.evaluate_model.score_table import Scores, Subject

SAMPLES = 8
CHANGES = 10
LONGEST = 400
"""Characters of a text that a table shows."""


def write(
    config: EvaluateConfig,
    verdict: gate.Verdict,
    everyone: Sequence[Subject],
    questions: dict[str, str],
    path: str,
) -> None:
    """Writes the page.

    Args:
        config: the step's options.
        verdict: of the gate.
        everyone: all models that were scored; first what the model is compared with row by row, then the model.
        questions: what each row asks, by its id.
        path: of the HTML file.
    """
    reference, subject, *_ = everyone
    rows = subject.scores
    groups = len(set(rows.group.tolist()))
    report = Report(
        f"Evaluation: {subject.name} against {reference.name}",
        f"On {len(rows):,} held-out rows in {groups:,} independent groups; bounds hold with"
        f" {config.confidence:.0%} confidence each.",
    )
    report.verdict(verdict.passed, verdict.reason)
    _subjects(report, config, everyone)
    _checks(report, verdict)
    _tasks(report, everyone)
    _changes(report, reference, subject, questions)
    _answers(report, reference, subject)
    report.write(path)


def _subjects(report: Report, config: EvaluateConfig, everyone: Sequence[Subject]) -> None:
    metrics = list(dict.fromkeys(["exact_match", *config.answer_metrics]))
    head = ["", "rows", "loss, nats a token", "between", "perplexity", "bits a byte", "right tokens"]
    lines = []
    for one in everyone:
        bounds = gate.loss(one.scores, config)
        between = f"{bounds.low:.4f} and {bounds.high:.4f}" if bounds else "too few rows"
        loss = one.scores.loss
        marks = [f"{one.mark(metric):.1%}" if one.answers else "not asked" for metric in metrics]
        shares = [f"{one.scores.bits_a_byte:.4f}", f"{one.scores.token_accuracy:.1%}"]
        lines.append([one.name, len(one.scores), f"{loss:.4f}", between, math.exp(min(loss, 700.0)), *shares, *marks])
    report.table([*head, *(metric.replace("_", " ") for metric in metrics)], lines)
    for one in everyone:
        empty = sum(not answer.answer.strip() for answer in one.answers)
        if empty:
            report.verdict(False, f"{one.name} generated nothing in {empty} of {len(one.answers)} answers.")


def _checks(report: Report, verdict: gate.Verdict) -> None:
    report.section(
        "What the gate looked at",
        "Positive is better. What the model must show counts at the lower bound; that a slice or the answers became"
        " worse must be shown at the upper one, whose confidence is shared among them.",
    )
    lines = []
    for check in verdict.checks:
        bounds = [f"{value:.4f}" for value in check.interval] if check.interval else ["too few rows", "", ""]
        lines.append([check.name, check.groups, *bounds, check.unit, "passed" if check.passed else "failed"])
    report.table(["", "groups", "better by", "at least", "at most", "unit", ""], lines)


def _tasks(report: Report, everyone: Sequence[Subject]) -> None:
    names = sorted({name for one in everyone for name in one.tasks})
    if names:
        report.section("Benchmarks", "By lm-eval; they take no part in the verdict.")
        lines = [[name, *(one.tasks.get(name, math.nan) for one in everyone)] for name in names]
        report.table(["", *(one.name for one in everyone)], lines)


def _changes(report: Report, reference: Subject, subject: Subject, questions: dict[str, str]) -> None:
    """The rows whose loss changed most, each way."""
    before, after = reference.scores.only(subject.scores.id), subject.scores.only(reference.scores.id)
    gained = _losses(before) - _losses(after)
    changed = [
        [f"{old:.4f}", f"{new:.4f}", f"{new - old:.4f}"]
        for old, new in zip(_losses(before), _losses(after), strict=True)
    ]
    order = np.argsort(-gained, kind="stable")
    for heading, places in (
        ("Where it got better", [place for place in order[:CHANGES] if gained[place] > 0]),
        ("Where it got worse", [place for place in order[::-1][:CHANGES] if gained[place] < 0]),
    ):
        report.section(heading, f"The {len(places)} largest changes, in nats a token." if places else "Nowhere.")
        if places:
            head = ["row", f"{reference.name}, loss", f"{subject.name}, loss", "change", "asked"]
            sliced = bool(after.slice.any())
            report.table(
                [*head, "slice"] if sliced else head,
                [
                    [str(after.id[place])[:12], *losses, _short(questions[str(after.id[place])])]
                    + ([str(after.slice[place])] if sliced else [])
                    for place, losses in ((place, changed[place]) for place in places)
                ],
            )


def _losses(scores: Scores) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return scores.nll / np.maximum(scores.tokens, 1)


def _answers(report: Report, reference: Subject, subject: Subject) -> None:
    if not subject.answers:
        return
    report.section("Answers", "The rows answered wrongly come first.")
    beside = {answer.id: answer.answer for answer in reference.answers}
    for answer in sorted(subject.answers, key=lambda item: item.scores["exact_match"])[:SAMPLES]:
        report.block(answer.prompt)
        lines = [("reference", answer.reference), (reference.name, beside.get(answer.id, "not asked"))]
        report.table(["", ""], [*lines, (subject.name, answer.answer)])


def _short(text: str) -> str:
    """The end of a prompt, where the question stands."""
    return text if len(text) <= LONGEST else f"… {text[-LONGEST:]}"
