import dataclasses
from pathlib import Path

import numpy as np
import pytest

from qlora_pipelines.components.core.config.steps import EvaluateConfig
from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.evaluate_model import gate, question_swap, scoring
from qlora_pipelines.components.evaluate_model.score_table import QuestionSwap, ScoredModel
from tests.components.evaluate_model.real import scored

CONFIG = EvaluateConfig()
BASE, TUNED = scored("base"), scored("tuned")


def sample(name: str, question: list[int], answer: list[int], group: str = "") -> Sample:
    """A row whose second answer is the token 99."""
    ids = [*question, *answer, 7, 99]
    labels = [chat_template.IGNORED] * len(question) + answer + [chat_template.IGNORED, 99]
    return Sample(name, [], chat_template.Encoded(ids, labels), group=group)


def test_the_first_answer_is_put_after_another_rows_question() -> None:
    rows = [sample("b", [1, 2], [3]), sample("a", [4], [5, 6])]
    (a, own, other), (b, *_) = question_swap.swaps(rows, 10)
    assert (a.id, b.id) == ("a", "b")
    assert (own.input_ids, own.labels) == ([4, 5, 6], [chat_template.IGNORED, 5, 6])
    assert (other.input_ids, other.labels) == ([1, 2, 5, 6], [chat_template.IGNORED, chat_template.IGNORED, 5, 6])
    assert len(question_swap.swaps([*rows, sample("c", [8], [9])], 2)) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [sample("a", [1], [3]), sample("b", [1], [4])],
        [sample("a", [1], [3]), sample("b", [2], [3])],
        [sample("a", [1], [3], "talk"), sample("b", [2], [4], "talk")],
        [sample("a", [], [3]), sample("b", [], [4])],
        [sample("a", [1], [3])],
        [],
    ],
    ids=["same question", "same answer", "same group", "plain text", "one row", "none"],
)
def test_rows_that_say_nothing_about_questions_are_left_out(rows: list[Sample]) -> None:
    assert question_swap.swaps(rows, 10) == []
    assert len(question_swap.score(None, rows, 10, 64, "cpu", "it").id) == 0


def test_a_gain_is_the_difference_of_two_scores(tiny_model: Path) -> None:
    model = loading.load_16bit(tiny_model).eval()
    rows = [sample("a", [4, 5], [6, 7]), sample("b", [8], [9, 10])]
    found = question_swap.score(model, rows, 10, 64, "cpu", "it")
    (_, own, other), _ = question_swap.swaps(rows, 10)
    (right, _), (wrong, _) = scoring.score(model, [own, other], 64, "cpu", "it")
    assert found.gain[0] == pytest.approx(wrong - right, abs=1e-2) and found.tokens.tolist() == [2, 2]


def reading(of: ScoredModel, gained: float, groups: int = 60) -> ScoredModel:
    """A model whose answers of ten tokens are likelier after their own question by so many nats per token."""
    noise = np.random.default_rng(0).normal(0, 1, groups)
    names = np.array([f"{place:02}" for place in range(groups)])
    gains = 10 * gained + noise - noise.mean()
    return dataclasses.replace(of, question_swap=QuestionSwap(names, names, gains, np.full(groups, 10.0)))


def test_a_model_that_does_not_read_its_questions_fails_however_low_its_loss() -> None:
    assert gate.judge_adapter(reading(BASE, 0), reading(TUNED, 0.5), None, CONFIG).passed
    verdict = gate.judge_adapter(reading(BASE, 0), reading(TUNED, 0), None, CONFIG)
    assert not verdict.passed
    assert verdict.reason.startswith("Failed: the tuned model does not read the question: answers are ")


def test_a_model_that_reads_them_far_less_than_its_base_fails() -> None:
    verdict = gate.judge_adapter(reading(BASE, 0.5), reading(TUNED, 0.1), None, CONFIG)
    assert verdict.reason.startswith("Failed: use of questions against half of base: worse by 0.1500 nats")
    assert gate.judge_adapter(reading(BASE, 0.5), reading(TUNED, 0.3), None, CONFIG).passed


def test_with_too_few_pairs_nothing_is_asked() -> None:
    verdict = gate.judge_adapter(reading(BASE, 0, 9), reading(TUNED, 0, 9), None, CONFIG)
    assert verdict.passed and [check.groups for check in verdict.checks if not check.interval][:1] == [9]
    none = QuestionSwap(*(np.array([]) for _ in QuestionSwap._fields))
    assert gate.judge_adapter(BASE, dataclasses.replace(TUNED, question_swap=none), None, CONFIG).passed
