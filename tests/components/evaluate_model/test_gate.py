import dataclasses
import json
import re

import numpy as np
import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.evaluate_model import gate
from qlora_pipelines.components.evaluate_model.score_table import Answer, ScoredModel
from tests.components.evaluate_model.real import changed, drawn, scored

CONFIG = EvaluateConfig()
BASE, TUNED, MERGED = scored("base"), scored("tuned"), scored("merged")
GAINED = BASE.scores.nll - TUNED.scores.nll
DRAWS = 1000


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_noise_is_promoted_in_at_most_five_percent(margin: float) -> None:
    """The real differences of the groups with signs at random: no better than the base, slices included."""
    rng = np.random.default_rng(0)
    config = EvaluateConfig(min_improvement=margin)
    promoted = 0
    for _ in range(DRAWS):
        signs = rng.choice([-1, 1], len(GAINED))
        promoted += gate.judge_adapter(BASE, changed(TUNED, nll=BASE.scores.nll - signs * GAINED), None, config).passed
    assert promoted <= 0.05 * DRAWS


def test_a_model_that_reads_no_question_is_promoted_in_at_most_five_percent() -> None:
    """The real gains of the answers from their questions with signs at random, under a loss far below the base's."""
    rng = np.random.default_rng(0)
    gained = TUNED.question_swap.gain
    promoted = 0
    for _ in range(DRAWS):
        noise = TUNED.question_swap._replace(gain=rng.choice([-1, 1], len(gained)) * gained)
        base = BASE.question_swap._replace(gain=np.zeros(len(gained)))
        here, there = dataclasses.replace(TUNED, question_swap=noise), dataclasses.replace(BASE, question_swap=base)
        promoted += gate.judge_adapter(there, here, None, CONFIG).passed
    assert promoted <= 0.05 * DRAWS


def test_a_difference_of_the_demos_size_is_found() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(DRAWS):
        rows = rng.integers(0, len(GAINED), len(GAINED))
        found += gate.judge_adapter(drawn(BASE, rows), drawn(TUNED, rows), None, CONFIG).passed
    assert found >= 0.95 * DRAWS


def test_the_reason_is_a_sentence_with_the_figures() -> None:
    verdict = gate.judge_adapter(BASE, TUNED, None, CONFIG)
    assert verdict.passed
    assert verdict.reason == (
        "Passed: the tuned loss is 0.0199 nats per token, 0.4114 below that of the base (with 95% confidence at least"
        " 0.3823 below, and 0.01 below is required)."
    )
    assert gate.judge_adapter(TUNED, BASE, None, CONFIG).reason.startswith(
        "Failed: the base loss is 0.4313 nats per token, 0.4114 above"
    )


def test_the_margin_must_hold_at_the_lower_bound() -> None:
    assert not gate.judge_adapter(BASE, TUNED, None, EvaluateConfig(min_improvement=0.4)).passed, (
        "0.41 on average, 0.38 surely"
    )


@pytest.mark.parametrize("rows", [3, 9])
def test_with_too_few_rows_nothing_is_decided(rows: int) -> None:
    few = np.arange(rows)
    verdict = gate.judge_adapter(drawn(BASE, few), drawn(TUNED, few), None, CONFIG)
    assert not verdict.passed
    assert verdict.reason == (
        f"Failed: {rows} independent groups of rows are too few to decide, at least 10 are needed."
    )
    assert "at least 10 are needed" in gate.judge_merged(drawn(TUNED, few), drawn(MERGED, few), CONFIG).reason
    assert gate.choose_merge_base(drawn(BASE, few).scores, drawn(TUNED, few).scores, CONFIG) == "dequantized"


def test_many_rows_of_few_conversations_are_few() -> None:
    groups = np.array([f"{place % 5}" for place in range(len(GAINED))])
    verdict = gate.judge_adapter(changed(BASE, group=groups), changed(TUNED, group=groups), None, CONFIG)
    assert "5 independent groups of rows are too few" in verdict.reason


def champion(like: ScoredModel, worse: float = 0.0, same_tokens: bool = True) -> gate.Champion:
    """A champion whose loss is `worse` nats per token above another's."""
    found = changed(like, nll=like.scores.nll + worse * like.scores.tokens)
    return gate.Champion(dataclasses.replace(found, name="champion 3"), same_tokens)


def test_a_model_as_good_as_the_champion_passes_and_a_worse_one_does_not() -> None:
    verdict = gate.judge_adapter(BASE, TUNED, champion(MERGED), CONFIG)
    assert verdict.passed and " nats per token, 0.0006 above that of champion 3 " in verdict.reason
    damaged = changed(TUNED, nll=TUNED.scores.nll + 0.05 * TUNED.scores.tokens)
    verdict = gate.judge_adapter(BASE, damaged, champion(TUNED), CONFIG)
    assert not verdict.passed
    assert verdict.reason.startswith(
        "Failed: the tuned loss is 0.0699 nats per token, 0.0500 above that of champion 3 "
    )


def test_a_champion_of_other_tokens_is_compared_in_bits_per_byte() -> None:
    other = champion(TUNED, worse=0.1, same_tokens=False)
    (check,) = (
        c for c in gate.judge_adapter(BASE, TUNED, other, CONFIG).checks if c.name == "not worse than champion 3"
    )
    assert check.unit == "bits per byte"
    expected = 0.1 * TUNED.scores.tokens.sum() / np.log(2) / TUNED.scores.bytes.sum()
    assert check.interval is not None and check.interval.mean == pytest.approx(expected)


def test_a_slice_that_became_worse_stops_a_model_that_is_better_on_the_whole() -> None:
    low = TUNED.scores.slice == "low"
    one_worse = changed(TUNED, nll=np.where(low, BASE.scores.nll + 0.3 * BASE.scores.tokens, TUNED.scores.nll))
    verdict = gate.judge_adapter(BASE, one_worse, None, CONFIG)
    assert not verdict.passed
    assert verdict.reason.startswith("Failed: slice low against base: worse by 0.3000 nats per token")


def test_slices_raise_no_more_false_alarms_together_than_one_alone() -> None:
    """As good as the champion in every slice, but for noise: of four slices at 95 % each, 19 % would alarm."""
    rng = np.random.default_rng(1)
    config, gained = EvaluateConfig(max_champion_loss=100), MERGED.scores.nll - TUNED.scores.nll
    stopped = 0
    for _ in range(DRAWS):
        signs = rng.choice([-1, 1], len(gained))
        noisy = changed(TUNED, nll=MERGED.scores.nll - signs * gained)
        stopped += not gate.judge_adapter(BASE, noisy, champion(MERGED), config).passed
    assert stopped <= 0.05 * DRAWS


def answered(of: ScoredModel, right: float) -> ScoredModel:
    marks = np.linspace(0, 1, len(of.scores), endpoint=False) < right
    answers = [
        Answer(row, "", "", "", {"exact_match": float(mark)})
        for row, mark in zip(of.scores.id.tolist(), marks, strict=True)
    ]
    return dataclasses.replace(of, answers=answers)


def test_answers_that_became_worse_than_the_champions_stop_a_model() -> None:
    better = champion(answered(TUNED, 0.9))
    assert gate.judge_adapter(BASE, answered(TUNED, 0.85), better, CONFIG).passed, "3 of 60 are noise"
    verdict = gate.judge_adapter(BASE, answered(TUNED, 0.4), better, CONFIG)
    assert verdict.reason.startswith("Failed: answers against champion 3: worse by 0.5000 exact_match")


def test_merging_may_lose_the_tolerance() -> None:
    assert gate.judge_merged(TUNED, MERGED, CONFIG).passed
    lost = changed(MERGED, nll=TUNED.scores.nll + 0.02 * TUNED.scores.tokens)
    assert not gate.judge_merged(TUNED, lost, CONFIG).passed
    assert gate.judge_merged(TUNED, lost, EvaluateConfig(max_merge_loss=0.03)).passed


def test_noise_in_the_merge_that_could_hide_a_loss_fails() -> None:
    """The mean is unchanged, but the rows scatter so much that a loss beyond the tolerance cannot be ruled out."""
    rng = np.random.default_rng(0)
    scatter = rng.permutation(np.repeat([-20.0, 20.0], len(GAINED) // 2))
    verdict = gate.judge_merged(TUNED, changed(MERGED, nll=TUNED.scores.nll + scatter), CONFIG)
    assert not verdict.passed


def test_the_original_is_merged_into_only_if_it_is_better_by_more_than_noise() -> None:
    better = TUNED.scores.nll - 0.01 * TUNED.scores.tokens
    assert gate.choose_merge_base(TUNED.scores, changed(TUNED, nll=better).scores, CONFIG) == "original"
    assert gate.choose_merge_base(TUNED.scores, TUNED.scores, CONFIG) == "dequantized"
    noise = np.tile([1.0, -1.0], len(GAINED) // 2)
    assert (
        gate.choose_merge_base(TUNED.scores, changed(TUNED, nll=TUNED.scores.nll - noise).scores, CONFIG)
        == "dequantized"
    )


def test_figures_are_flat_and_small_however_many_slices() -> None:
    slices = np.array([f"c++ / don't, a slice of a very long name, {place}" for place in range(len(GAINED))])
    base, tuned = changed(BASE, slice=slices), changed(TUNED, slice=slices)
    verdict = gate.judge_adapter(base, tuned, champion(tuned), CONFIG)
    figures = gate.figures(verdict, base, tuned, CONFIG)
    assert len(json.dumps(figures)) < 3000
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert all(re.fullmatch(r"[\w.-]+", name) for name in figures), "MLflow takes no other signs"
    assert figures["rows"] == figures["groups"] == 60 and figures["better_than_base.low"] > 0.38
