"""What all conversations begin with, a system prompt as a rule, goes through the model once."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from components.core import chat, packing

SHORTEST = 8
"""Tokens; a shorter start is not worth its handling."""


def tokens(encoded: Sequence[chat.Encoded]) -> list[int]:
    """The tokens that all conversations begin with, ended before the one that predicts a supervised token."""
    if len(encoded) < 2:
        return []
    unsupervised = min(
        next((place for place, label in enumerate(item.labels) if label != chat.IGNORED), len(item.labels))
        for item in encoded
    )
    columns = zip(*(item.input_ids for item in encoded), strict=False)
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    start = [column[0] for column in itertools.islice(alike, max(0, unsupervised - 1))]
    return start if len(start) >= SHORTEST else []


class Keys(DynamicCache):  # type: ignore[misc]  # transformers has no types here
    """The keys and values of a start; they go in front of those of a row, which are not kept."""

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The keys and values that a row attends to in one layer, shape (1, key heads, start + row, head size)."""
        start = self.layers[layer]
        return torch.cat([start.keys, key], 2), torch.cat([start.values, value], 2)


def read(decoder: Any, start: list[int], device: str) -> Keys:
    """Runs a start through the layers of a model whose attention is `core/attention.py`'s."""
    inputs = packing.collate([packing.joined([chat.Encoded(start, [chat.IGNORED] * len(start))])])
    del inputs["labels"]
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    cache = DynamicCache()
    decoder(**inputs, past_key_values=cache, use_cache=True)
    return Keys([(layer.keys, layer.values) for layer in cache.layers])
