"""The gate: pure functions of scores, so that it can be tested, and simulated, without a model.

The candidate carries the burden of proof that it is better than its base, not worse than the champion, and that it
reads the question: each must hold at the lower bound of the difference. Their number needs no correction, because all
must hold: a model that lacks one of them passes only if that very one is shown in error (an intersection-union test,
Berger 1982).

The gate carries the burden of proof that a slice or the answers became worse, because a slice of a dozen rows could
prove nothing: the difference must be below 0 at its upper bound. Any one of these stops the candidate, so each gets an
equal share of the allowed error (Bonferroni): together they stop a faultless model in no more cases than allowed.
"""

import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.sample_size import groups_needed
from qlora_pipelines.components.evaluate_model import bootstrap
from qlora_pipelines.components.evaluate_model.bootstrap import Interval, Sums
from qlora_pipelines.components.evaluate_model.score_table import ScoredModel, Scores

NATS, BITS = "nats per token", "bits per byte"
MAX_CHECKS = 8
"""Checks whose figures are passed on as evidence, the failed first; the report has all."""


class Check(NamedTuple):
    """One comparison: by how much the candidate is better than another model, and what that means.

    `interval` is in `unit`, positive where the candidate is better; None where there are too few groups for one.
    """

    name: str
    unit: str
    groups: int
    interval: Interval | None
    passed: bool
    text: str


class Verdict(NamedTuple):
    """Whether the candidate passes, why in one sentence, and the checks behind it."""

    passed: bool
    reason: str
    checks: list[Check]


@dataclasses.dataclass(frozen=True)
class Champion:
    """Today's champion, scored, and whether its tokens are those of the candidate."""

    model: ScoredModel
    same_tokens: bool


def judge_adapter(
    base: ScoredModel, candidate: ScoredModel, champion: Champion | None, config: EvaluateConfig
) -> Verdict:
    """Whether an adapter may be merged.

    Args:
        base: the base's scores.
        candidate: the adapter's, of the same rows.
        champion: today's champion, on the rows that can be compared, if there is one.
        config: confidence, margins, and the metric by which the answers are compared with the champion's.
    """
    tail = 1 - config.confidence
    reference, unit = base, NATS
    checks = [_check_loss("the base", base.scores, candidate, NATS, config.min_improvement, tail, better=True)]
    if champion:
        reference, unit = champion.model, NATS if champion.same_tokens else BITS
        checks.append(_check_loss(reference.name, reference.scores, candidate, unit, config.max_champion_loss, tail))
    checks += _check_reads_question(candidate, tail)
    regressions = _slices(reference, candidate, unit) + _use_of_questions(base, candidate)
    if champion and reference.answers and candidate.answers:
        regressions.append(_answers(reference, candidate, config.answer_metrics[0]))
    checks += [_check_regression(*found, config.max_slice_loss, tail / len(regressions)) for found in regressions]
    return _verdict(checks)


def judge_merged(adapter: ScoredModel, candidate: ScoredModel, config: EvaluateConfig) -> Verdict:
    """Whether merging lost nothing: the merged model is not worse than the adapter on the base in 4 bit.

    Args:
        adapter: the adapter's scores.
        candidate: the merged model's, of the same rows.
        config: confidence and margin.
    """
    tail = 1 - config.confidence
    return _verdict([_check_loss("the adapter", adapter.scores, candidate, NATS, config.max_merge_loss, tail)])


def choose_merge_base(dequantized: Scores, original: Scores, config: EvaluateConfig) -> str:
    """What to merge the adapter into: the 16-bit `original` if the adapter is better there by more than noise.

    Args:
        dequantized: scores of the adapter on the base in 4 bit.
        original: its scores on the base in 16 bit.
        config: has the confidence.
    """
    interval = bootstrap.bounds(_improvement(dequantized, original, NATS), 1 - config.confidence)
    return "original" if interval and interval.low > 0 else "dequantized"


def figures(
    verdict: Verdict, reference: ScoredModel, candidate: ScoredModel, config: EvaluateConfig
) -> dict[str, float | str]:
    """What the gate saw, flat: numbers and short texts, less than 3 kB however many slices there are."""
    scores = candidate.scores
    found: dict[str, float | str] = {
        "rows": len(scores),
        "groups": len(set(scores.group.tolist())),
        "confidence": config.confidence,
        "loss": scores.loss,
        "bits_a_byte": scores.bits_per_byte,
        "token_accuracy": scores.token_accuracy,
        "reference": reference.name,
        "reference_loss": reference.scores.loss,
    }
    if candidate.answers:
        found |= {metric: candidate.mean(metric) for metric in ("exact_match", *config.answer_metrics)}
    for check in sorted(verdict.checks, key=lambda check: check.passed)[:MAX_CHECKS]:
        name = re.sub(r"[^\w.-]", "_", check.name[:48])  # the data names slices, and MLflow takes no other characters
        found |= {f"{name}.groups": check.groups, f"{name}.passed": float(check.passed)}
        if check.interval:
            found |= {f"{name}.{bound}": value for bound, value in check.interval._asdict().items()}
    found |= {"checks": len(verdict.checks), "checks_failed": sum(not check.passed for check in verdict.checks)}
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in found.items()}


def _verdict(checks: list[Check]) -> Verdict:
    failed = [check for check in checks if not check.passed]
    texts = [check.text for check in failed or checks if check.text]
    return Verdict(not failed, f"{'Failed' if failed else 'Passed'}: {'; '.join(texts)}.", checks)


def _improvement(reference: Scores, candidate: Scores, unit: str) -> Sums:
    """By how much the candidate's rows are likelier, by group; rows that only one of the two has are left out."""
    reference, candidate = reference.only(candidate.id), candidate.only(reference.id)
    nats = reference.nll - candidate.nll
    if unit == NATS:
        return bootstrap.grouped(nats, candidate.tokens, candidate.group)
    return bootstrap.grouped(nats / math.log(2), candidate.bytes, candidate.group)


def _percent(tail: float) -> str:
    return f"{100 * (1 - tail):.3g}%"


def _difference(better: float) -> str:
    return f"{abs(better):.4f} {'below' if better >= 0 else 'above'}"


def _check_loss(
    whose: str, reference: Scores, candidate: ScoredModel, unit: str, margin: float, tail: float, better: bool = False
) -> Check:
    """Whether the candidate's loss is shown to be lower, or not to be higher (a non-inferiority test), by a margin."""
    name = "better than base" if better else f"not worse than {whose}"
    sums = _improvement(reference, candidate.scores, unit)
    groups, interval = len(sums.totals), bootstrap.bounds(sums, tail)
    if interval is None:
        text = f"{groups} independent groups of rows are too few to decide, at least {groups_needed(tail)} are needed"
        return Check(name, unit, groups, None, False, text)
    scores = candidate.scores.only(reference.id)
    passed = interval.low >= margin and interval.low > 0 if better else interval.low >= -margin
    text = (
        f"the {candidate.name} loss is {scores.loss if unit == NATS else scores.bits_per_byte:.4f} {unit},"
        f" {_difference(interval.mean)} that of {whose} (with {_percent(tail)} confidence at"
        f" {'least' if interval.low > 0 else 'most'} {_difference(interval.low)}, and {margin:g}"
        f" {'below is required' if better else 'above is allowed'})"
    )
    return Check(name, unit, groups, interval, passed, text)


def _check_reads_question(candidate: ScoredModel, tail: float) -> list[Check]:
    """Whether answers are likelier after their own question than after another row's: the candidate must show it.

    Where too few rows have different questions and answers, as in plain text, nothing is required.
    """
    swap = candidate.question_swap
    if swap is None or len(swap.id) == 0:
        return []
    sums = bootstrap.grouped(swap.gain, swap.tokens, swap.group)
    interval = bootstrap.bounds(sums, tail)
    text = ""
    if interval and interval.low <= 0:
        text = (
            f"the {candidate.name} model does not read the question: answers are {interval.mean:.4f} nats per token"
            f" likelier after their own question than after another row's (with {_percent(tail)} confidence at least"
            f" {interval.low:.4f}, and more than 0 is required); check that the data pairs questions with their answers"
        )
    return [Check("reads the question", NATS, len(sums.totals), interval, not text, text)]


Regression = tuple[str, str, Sums]
"""What must not have become worse: the check's name, its unit, and by how much each group is better."""


def _slices(reference: ScoredModel, candidate: ScoredModel, unit: str) -> list[Regression]:
    scores = candidate.scores
    found = []
    for name in sorted(set(scores.slice.tolist()) - {""}):
        sums = _improvement(reference.scores, scores.only(scores.id[scores.slice == name]), unit)
        if len(sums.totals):
            found.append((f"slice {name} against {reference.name}", unit, sums))
    return found


def _use_of_questions(base: ScoredModel, candidate: ScoredModel) -> list[Regression]:
    """What a question does for its answer, less half of what it does under the base.

    Half, because a model that learned a style finds all answers likelier, another row's too.
    """
    mine, other = candidate.question_swap, base.question_swap
    if mine is None or other is None:
        return []
    _, here, there = np.intersect1d(mine.id, other.id, assume_unique=True, return_indices=True)
    if len(here) == 0:
        return []
    sums = bootstrap.grouped(mine.gain[here] - other.gain[there] / 2, mine.tokens[here], mine.group[here])
    return [("use of questions against half of base", NATS, sums)]


def _answers(reference: ScoredModel, candidate: ScoredModel, metric: str) -> Regression:
    """Scores of the answers to the same questions, by the rows' groups."""
    group = dict(zip(candidate.scores.id.tolist(), candidate.scores.group.tolist(), strict=True))
    before = {answer.id: answer.scores[metric] for answer in reference.answers}
    both = [answer for answer in candidate.answers if answer.id in before]
    better = np.array([answer.scores[metric] - before[answer.id] for answer in both])
    groups = np.array([group[answer.id] for answer in both], dtype=np.str_)
    return f"answers against {reference.name}", metric, bootstrap.grouped(better, np.ones(len(both)), groups)


def _check_regression(name: str, unit: str, sums: Sums, margin: float, tail: float) -> Check:
    """Fails where the candidate is shown to be worse by more than the margin. Too few groups show nothing, so pass."""
    interval = bootstrap.bounds(sums, tail)
    text = ""
    if interval and interval.high < -margin:
        text = (
            f"{name}: worse by {-interval.mean:.4f} {unit} (with {_percent(tail)} confidence at least"
            f" {-interval.high:.4f}, and {margin:g} is allowed)"
        )
    return Check(name, unit, len(sums.totals), interval, not text, text)
