"""What all conversations begin with, a system prompt as a rule, goes through the model once."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from qlora_pipelines.components.core.data import chat_template, packing

SHORTEST = 8
"""Tokens; a shorter start is not worth its handling."""


def tokens(encoded: Sequence[chat_template.Encoded]) -> list[int]:
    """The tokens that all conversations begin with, ended before the one that predicts a supervised token."""
    if len(encoded) < 2:
        return []
    unsupervised = min(
        next((place for place, label in enumerate(item.labels) if label != chat_template.IGNORED), len(item.labels))
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


def read(causal: Any, decoder: Any, encoded: Sequence[chat_template.Encoded], device: str) -> tuple[int, Keys | None]:
    """Runs what all conversations begin with through the layers of a model.

    Args:
        causal: the model; its attention is `core/models/packed_attention.py`'s.
        decoder: its layers.
        encoded: the conversations.
        device: where the inputs go.

    Returns:
        how many tokens it has, and their keys; 0 and None where there is no such start, or the model cannot use it.
    """
    start = [] if _rotates_by_length(causal.config) else tokens(encoded)
    if not start:
        return 0, None
    inputs = packing.collate([packing.joined([chat_template.Encoded(start, [chat_template.IGNORED] * len(start))])])
    del inputs["labels"]
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    cache = DynamicCache()
    decoder(**inputs, past_key_values=cache, use_cache=True)
    if cache.get_seq_length() != len(start):
        return 0, None  # not all keep what they have read there
    return len(start), Keys([(layer.keys, layer.values) for layer in cache.layers])


def _rotates_by_length(config: Any) -> bool:
    """Whether a token's position is encoded by the length of what is read with it, as with longrope (Phi-3)."""
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [part.get("rope_type") or "" for part in (given, *given.values()) if isinstance(part, dict)]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
