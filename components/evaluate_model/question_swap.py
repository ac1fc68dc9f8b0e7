"""Whether a model reads the question: how much likelier an answer is after its own question than after another's.

A loss also falls where a model learns what answers look like, whatever was asked. That is all there is to learn where
the answers of the training rows were mixed up, and no loss on the held-out rows would tell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample
from qlora_pipelines.components.evaluate_model import scoring
from qlora_pipelines.components.evaluate_model.score_table import Pairing

Pair = tuple[Sample, chat_template.Encoded, chat_template.Encoded]


def measure(model: Any, samples: Sequence[Sample], most: int, batch_tokens: int, device: str, name: str) -> Pairing:
    """Scores first answers after their own question and after another row's.

    Args:
        model: causal language model in eval mode.
        samples: the rows, encoded with its tokenizer.
        most: rows to take.
        batch_tokens: tokens a forward pass.
        device: where the inputs go.
        name: what the progress lines call it.
    """
    found = pairs(samples, most)
    encoded = [own for _, own, _ in found] + [other for _, _, other in found]
    scored = scoring.score(model, encoded, batch_tokens, device, f"{name}, questions swapped") if found else []
    losses = np.array([nll for nll, _ in scored]).reshape(2, len(found))
    return Pairing(
        id=np.array([sample.id for sample, _, _ in found], dtype=np.str_),
        group=np.array([sample.group or sample.id for sample, _, _ in found], dtype=np.str_),
        gained=losses[1] - losses[0],
        tokens=np.array([own.supervised for _, own, _ in found], dtype=np.float64),
    )


def pairs(samples: Sequence[Sample], most: int) -> list[Pair]:
    """The first answer of rows, after what was asked and after what another row asked.

    The other row is of another group, and has another question and another answer. A row for which there is none is
    left out; so are rows of plain text, which ask nothing.

    Args:
        samples: the rows.
        most: rows to take, the first by id.
    """
    chosen = sorted(samples, key=lambda sample: sample.id)[:most]
    parts = [_first_answer(sample.encoded) for sample in chosen]
    found = []
    for place, (sample, (question, answer)) in enumerate(zip(chosen, parts, strict=True)):
        for step in range(1, len(chosen) if question and answer else 0):
            other = (place + step) % len(chosen)
            elsewhere, another = parts[other]
            if elsewhere and elsewhere != question and another != answer and _group(chosen[other]) != _group(sample):
                found.append((sample, _joined(question, answer), _joined(elsewhere, answer)))
                break
    return found


def _group(sample: Sample) -> str:
    return sample.group or sample.id


def _first_answer(encoded: chat_template.Encoded) -> tuple[list[int], list[int]]:
    """The tokens before the first supervised one, and the supervised ones from there on without a gap."""
    supervised = [label != chat_template.IGNORED for label in encoded.labels] + [False]
    start = supervised.index(True) if True in supervised else len(encoded.labels)
    end = supervised.index(False, start)
    return encoded.input_ids[:start], encoded.input_ids[start:end]


def _joined(question: list[int], answer: list[int]) -> chat_template.Encoded:
    return chat_template.Encoded([*question, *answer], [chat_template.IGNORED] * len(question) + answer)
