"""Whether a model reads the question: how much likelier an answer is after its own question than after another row's.

A loss also falls where a model learns what answers look like, whatever the question. That is all there is to learn
where the answers of the training rows were mixed up, and no loss on the held-out rows would tell.

The gain log p(answer | own question) - log p(answer | another's) is 0 for a model that ignores the question. For one
that reads it, its mean over the others' questions q' is at least log p(a | q) / p(a), the pointwise mutual information
of answer and question: by Jensen's inequality the mean of log p(a | q') is at most log p(a).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.evaluate_model import scoring
from qlora_pipelines.components.evaluate_model.score_table import QuestionSwap

Swap = tuple[Sample, chat_template.Encoded, chat_template.Encoded]


def score(model: Any, samples: Sequence[Sample], rows: int, batch_tokens: int, device: str, name: str) -> QuestionSwap:
    """Scores first answers after their own question and after another row's.

    Args:
        model: causal language model in eval mode.
        samples: the rows, encoded with its tokenizer.
        rows: how many to take at most.
        batch_tokens: tokens per forward pass.
        device: where the inputs go.
        name: of the model in the progress lines.
    """
    found = swaps(samples, rows)
    encoded = [own for _, own, _ in found] + [other for _, _, other in found]
    scored = scoring.score(model, encoded, batch_tokens, device, f"{name}, questions swapped") if found else []
    own_nll, other_nll = np.array([nll for nll, _ in scored]).reshape(2, len(found))
    return QuestionSwap(
        id=np.array([sample.id for sample, _, _ in found], dtype=np.str_),
        group=np.array([sample.group or sample.id for sample, _, _ in found], dtype=np.str_),
        gain=other_nll - own_nll,
        tokens=np.array([own.supervised for _, own, _ in found], dtype=np.float64),
    )


def swaps(samples: Sequence[Sample], rows: int) -> list[Swap]:
    """The first answers of rows, each after its own question and after another row's.

    The other row is of another group, and has another question and another answer. A row for which there is none is
    left out; so are rows of plain text, which have no question.

    Args:
        samples: the rows.
        rows: how many to take at most, the first by id.
    """
    chosen = sorted(samples, key=lambda sample: sample.id)[:rows]
    parts = [(sample.group or sample.id, *_first_answer(sample.encoded)) for sample in chosen]
    found = []
    for place, (sample, (group, question, answer)) in enumerate(zip(chosen, parts, strict=True)):
        others = (
            other_question
            for other_group, other_question, other_answer in [*parts[place + 1 :], *parts[:place]]
            if other_group != group and other_answer != answer and other_question and other_question != question
        )
        if question and answer and (other := next(others, None)):
            found.append((sample, _joined(question, answer), _joined(other, answer)))
    return found


def _first_answer(encoded: chat_template.Encoded) -> tuple[list[int], list[int]]:
    """The tokens before the first supervised one, and the supervised ones from there on without a gap."""
    supervised = [label != chat_template.IGNORED for label in encoded.labels] + [False]
    start = supervised.index(True) if True in supervised else len(encoded.labels)
    end = supervised.index(False, start)
    return encoded.input_ids[:start], encoded.input_ids[start:end]


def _joined(question: list[int], answer: list[int]) -> chat_template.Encoded:
    return chat_template.Encoded([*question, *answer], [chat_template.IGNORED] * len(question) + answer)
