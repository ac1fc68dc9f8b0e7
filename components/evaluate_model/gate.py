"""The gate: pure functions of scores, so that it can be tested, and simulated, without a model.

What a candidate must show carries the burden of proof: that it is better than its base, not worse than the champion,
and that it reads the question, must hold at the lower bound of the difference. What would stop it in spite of that, a
slice or the answers having become worse, must be shown at the upper bound, and as there may be many of these, each is
held to its share of the error that is allowed (Bonferroni).
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.evaluate_model import bootstrap
from qlora_pipelines.components.evaluate_model.bootstrap import Floats, Interval
from qlora_pipelines.components.evaluate_model.score_table import Answer, Scores, Subject

NATS, BITS = "nats a token", "bits a byte"
MOST_CHECKS = 8
"""Checks whose figures go on as evidence, the failed first; the report has all."""


class Check(NamedTuple):
    """One thing that was looked at: by how much the model is better than another, and what that means.

    `interval` is in `unit`, positive where the model is better; None where there are too few groups for one.
    """

    name: str
    unit: str
    groups: int
    interval: Interval | None
    passed: bool
    text: str


class Verdict(NamedTuple):
    """Whether the model goes on, why in one sentence, and what was looked at."""

    passed: bool
    reason: str
    checks: list[Check]


@dataclasses.dataclass(frozen=True)
class Champion:
    """Today's champion: what it is called, its scores, and whether its tokens are those of the model judged."""

    subject: Subject
    same_tokens: bool


def tuned(base: Subject, subject: Subject, champion: Champion | None, config: EvaluateConfig) -> Verdict:
    """Whether an adapter may go on to be merged.

    Args:
        base: the base's scores.
        subject: the adapter's, of the same rows.
        champion: today's champion, on the rows that can be compared, if there is one.
        config: confidence, margins, and the metric by which the answers are compared with the champion's.
    """
    tail = 1 - config.confidence
    checks = [_better(base.scores, subject.scores, config.min_improvement, tail)]
    beside, unit = (champion.subject, NATS if champion.same_tokens else BITS) if champion else (base, NATS)
    if champion:
        checks.append(_not_worse(beside.scores, subject, beside.name, config.max_champion_loss, tail, unit))
    checks += _heeds(subject, tail)
    alarms = _slices(beside.scores, subject.scores, beside.name, unit) + _use_of_questions(base, subject)
    if champion and beside.answers and subject.answers:
        alarms.append(_answers(beside, subject, config.answer_metrics[0]))
    checks += [_alarm(*alarm, config.max_slice_loss, tail / len(alarms)) for alarm in alarms]
    return _verdict(checks)


def merged(adapter: Subject, subject: Subject, config: EvaluateConfig) -> Verdict:
    """Whether merging lost nothing: the merged model is not worse than the adapter on the base in 4 bit.

    Args:
        adapter: the adapter's scores.
        subject: the merged model's, of the same rows.
        config: confidence and margin.
    """
    tail = 1 - config.confidence
    return _verdict([_not_worse(adapter.scores, subject, "the adapter", config.max_merge_loss, tail, NATS)])


def merge_base(dequantized: Scores, original: Scores, config: EvaluateConfig) -> str:
    """What to merge the adapter into: the 16-bit `original` if it is better there by more than noise.

    Args:
        dequantized: scores of the adapter on the base in 4 bit.
        original: its scores on the base in 16 bit.
        config: holds the confidence.
    """
    tail = 1 - config.confidence
    totals, units, groups = _paired(dequantized, original, NATS)
    better = groups >= groups_needed(tail) and bootstrap.ratio(totals, units, tail).low > 0
    return "original" if better else "dequantized"


def figures(verdict: Verdict, reference: Subject, subject: Subject, config: EvaluateConfig) -> dict[str, float | str]:
    """What the gate saw, flat: numbers and short texts, less than 3 kB however many slices there are."""
    rows = subject.scores
    found: dict[str, float | str] = {
        "rows": len(rows),
        "groups": len(set(rows.group.tolist())),
        "confidence": config.confidence,
        "loss": rows.loss,
        "bits_a_byte": rows.bits_a_byte,
        "token_accuracy": rows.token_accuracy,
        "reference": reference.name,
        "reference_loss": reference.scores.loss,
    }
    found |= {metric: subject.mark(metric) for metric in ("exact_match", *config.answer_metrics) if subject.answers}
    for check in sorted(verdict.checks, key=lambda check: check.passed)[:MOST_CHECKS]:
        name = re.sub(r"[^\w.-]", "_", check.name[:48])  # a slice is named by the data, and MLflow takes no other signs
        found |= {f"{name}.groups": check.groups, f"{name}.passed": float(check.passed)}
        if check.interval:
            bounds = zip(("mean", "low", "high"), check.interval, strict=True)
            found |= {f"{name}.{bound}": value for bound, value in bounds}
    found["checks"] = len(verdict.checks)
    found["checks_failed"] = sum(not check.passed for check in verdict.checks)
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


def loss(scores: Scores, config: EvaluateConfig) -> Interval | None:
    """A subject's loss in nats a token, with one-sided bounds; None where there are too few groups."""
    columns = bootstrap.grouped(np.stack([scores.nll, scores.tokens], axis=1), scores.group)
    tail = 1 - config.confidence
    enough = len(columns) >= groups_needed(tail)
    return bootstrap.ratio(columns[:, 0], columns[:, 1], tail) if enough else None


def _verdict(checks: Sequence[Check]) -> Verdict:
    failed = [check for check in checks if not check.passed]
    said = failed or [check for check in checks if check.text]
    return Verdict(
        not failed, f"{'Failed' if failed else 'Passed'}: {'; '.join(check.text for check in said)}.", list(checks)
    )


def _paired(reference: Scores, subject: Scores, unit: str) -> tuple[Floats, Floats, int]:
    """Each group's summed difference and what it is spread over; rows that only one side has are left out."""
    reference, subject = reference.only(subject.id), subject.only(reference.id)
    gained = reference.nll - subject.nll
    spread = subject.tokens if unit == NATS else subject.bytes
    values = np.stack([gained if unit == NATS else gained / math.log(2), spread], axis=1)
    sums = bootstrap.grouped(values, subject.group)
    return sums[:, 0], sums[:, 1], len(sums)


def _undecided(name: str, unit: str, groups: int, tail: float) -> Check:
    needed = groups_needed(tail)
    text = f"nothing can be decided with {groups} independent rows (groups); at least {needed} would do"
    return Check(name, unit, groups, None, False, text)


def _better(base: Scores, subject: Scores, margin: float, tail: float) -> Check:
    totals, units, groups = _paired(base, subject, NATS)
    if groups < groups_needed(tail):
        return _undecided("better than base", NATS, groups, tail)
    found = bootstrap.ratio(totals, units, tail)
    text = (
        f"the tuned loss is {subject.loss:.4f} nats a token, {_side(found.mean)} the base's"
        f" ({_surely(found.low, tail)}), and at least {margin:g} below was asked for"
    )
    return Check("better than base", NATS, groups, found, found.low >= margin and found.low > 0, text)


def _not_worse(reference: Scores, subject: Subject, name: str, margin: float, tail: float, unit: str) -> Check:
    what = f"not worse than {name}"
    totals, units, groups = _paired(reference, subject.scores, unit)
    if groups < groups_needed(tail):
        return _undecided(what, unit, groups, tail)
    found = bootstrap.ratio(totals, units, tail)
    text = (
        f"the {subject.name} loss is {_side(found.mean)} that of {name} in {unit} ({_surely(found.low, tail)}), and at"
        f" most {margin:g} above was allowed"
    )
    return Check(what, unit, groups, found, found.low >= -margin, text)


def _heeds(subject: Subject, tail: float) -> list[Check]:
    """Whether answers are likelier after their own question than after another's: the model must show it.

    Where there are too few rows of different questions and answers, as in plain text, nothing is asked of it.
    """
    if subject.pairing is None or len(subject.pairing.id) == 0:
        return []
    name, pairing = "reads the question", subject.pairing
    sums = bootstrap.grouped(np.stack([pairing.gained, pairing.tokens], axis=1), pairing.group)
    if len(sums) < groups_needed(tail):
        return [Check(name, NATS, len(sums), None, True, "")]
    found = bootstrap.ratio(sums[:, 0], sums[:, 1], tail)
    text = (
        f"the {subject.name} model does not read the question: answers are {found.mean:.4f} nats a token likelier after"
        f" their own than after another's (with {100 * (1 - tail):.3g}% confidence at least {found.low:.4f}), and more"
        " than 0 was asked for; are the answers in the data those of their questions?"
    )
    return [Check(name, NATS, len(sums), found, found.low > 0, "" if found.low > 0 else text)]


def _surely(low: float, tail: float) -> str:
    return f"with {100 * (1 - tail):.3g}% confidence at {'least' if low > 0 else 'most'} {_side(low)}"


def _side(better: float) -> str:
    return f"{abs(better):.4f} {'below' if better >= 0 else 'above'}"


_Alarm = tuple[str, str, Floats, Floats]
"""What must not have become worse: its name, the unit, and totals and units of its groups."""


def _slices(reference: Scores, subject: Scores, beside: str, unit: str) -> list[_Alarm]:
    found = []
    for name in sorted(set(subject.slice.tolist()) - {""}):
        rows = subject.only(subject.id[subject.slice == name])
        totals, units, groups = _paired(reference, rows, unit)
        if groups:
            found.append((f"slice {name} against {beside}", unit, totals, units))
    return found


def _use_of_questions(base: Subject, subject: Subject) -> list[_Alarm]:
    """What a question does for its answer, against half of what it does under the base.

    Half, because a model that learns a style holds all answers for likelier, another row's too.
    """
    mine, other = subject.pairing, base.pairing
    if mine is None or other is None or not set(mine.id.tolist()) & set(other.id.tolist()):
        return []
    at = {row: place for place, row in enumerate(other.id.tolist())}
    both = [(place, at[row]) for place, row in enumerate(mine.id.tolist()) if row in at]
    here, there = (np.array(places) for places in zip(*both, strict=True))
    values = np.stack([mine.gained[here] - other.gained[there] / 2, mine.tokens[here]], axis=1)
    sums = bootstrap.grouped(values, mine.group[here])
    return [("use of questions against half of base", NATS, sums[:, 0], sums[:, 1])]


def _answers(reference: Subject, subject: Subject, metric: str) -> _Alarm:
    """Marks of the answers to the same questions, by the rows' groups."""
    group = dict(zip(subject.scores.id.tolist(), subject.scores.group.tolist(), strict=True))
    beside = {answer.id: answer for answer in reference.answers}
    both: list[tuple[Answer, Answer]] = [
        (answer, beside[answer.id]) for answer in subject.answers if answer.id in beside and answer.id in group
    ]
    gained = np.array([[mine.scores[metric] - other.scores[metric], 1.0] for mine, other in both]).reshape(-1, 2)
    sums = bootstrap.grouped(gained, np.array([group[mine.id] for mine, _ in both], dtype=np.str_))
    return f"answers against {reference.name}", metric, sums[:, 0], sums[:, 1]


def _alarm(name: str, unit: str, totals: Floats, units: Floats, margin: float, tail: float) -> Check:
    """Fails where it is shown that the model became worse there by more than the margin."""
    groups, needed = len(totals), groups_needed(tail)
    if groups < needed:
        return Check(name, unit, groups, None, True, "")
    found = bootstrap.ratio(totals, units, tail)
    worse = found.high < -margin
    text = (
        f"{name}: worse by {-found.mean:.4f} {unit} (with {100 * (1 - tail):.3g}% confidence at least"
        f" {-found.high:.4f}), and {margin:g} was allowed"
    )
    return Check(name, unit, groups, found, not worse, text if worse else "")
