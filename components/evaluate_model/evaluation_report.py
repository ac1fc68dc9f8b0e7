"""The page that says how the model was judged: verdict, subjects, checks, where it changed most, answers."""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.report import Report
from qlora_pipelines.components.evaluate_model import gate
from qlora_pipelines.components.evaluate_model.score_table import Scores, Subject

SAMPLES = 8
CHANGES = 10
LONGEST = 400
"""Characters of a text that a table shows."""


def write(
    config: EvaluateConfig,
    verdict: gate.Verdict,
    everyone: Sequence[Subject],
    texts: dict[str, tuple[str, str]],
    path: str,
) -> None:
    """Writes the page.

    Args:
        config: the step's options.
        verdict: of the gate.
        everyone: all models that were scored; first what the model is compared with row by row, then the model.
        texts: what each row asks and its right answer, by its id.
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
    _changes(report, reference, subject, texts)
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
        lines.append([check.name, "passed" if check.passed else "failed", check.groups, *bounds, check.unit])
    report.table(["", "", "groups", "better by", "at least", "at most", "unit"], lines)


def _tasks(report: Report, everyone: Sequence[Subject]) -> None:
    names = sorted({name for one in everyone for name in one.tasks})
    if names:
        report.section("Benchmarks", "By lm-eval; they take no part in the verdict.")
        lines = [[name, *(one.tasks.get(name, math.nan) for one in everyone)] for name in names]
        report.table(["", *(one.name for one in everyone)], lines)


def _changes(report: Report, reference: Subject, subject: Subject, texts: dict[str, tuple[str, str]]) -> None:
    """The rows whose loss changed most, each way, with the answers side by side."""
    before, after = reference.scores.only(subject.scores.id), subject.scores.only(reference.scores.id)
    old, new = _losses(before), _losses(after)
    order = np.argsort(new - old, kind="stable")
    given = [{answer.id: _short(answer.answer) for answer in one.answers} for one in (reference, subject)]
    head = [f"row, loss: {reference.name} → {subject.name}", "asked", "right answer", reference.name, subject.name]
    for heading, places in (
        ("Where it got better", [place for place in order[:CHANGES] if new[place] < old[place]]),
        ("Where it got worse", [place for place in order[::-1][:CHANGES] if new[place] > old[place]]),
    ):
        report.section(heading, f"The {len(places)} largest changes, in nats a token." if places else "Nowhere.")
        lines: list[list[object]] = []
        for place in places:
            row = str(after.id[place])
            facts = [
                row[:12],
                f"{old[place]:.4f}\N{NO-BREAK SPACE}→\N{NO-BREAK SPACE}{new[place]:.4f}",
                f"{new[place] - old[place]:+.4f}",
            ]
            facts += [f"slice {after.slice[place]}"] if after.slice[place] else []
            answers = [found.get(row, "not asked") for found in given]
            lines.append([Markup("<br>").join(facts), *map(_short, texts[row]), *answers])
        if places:
            report.table(head, lines)


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
