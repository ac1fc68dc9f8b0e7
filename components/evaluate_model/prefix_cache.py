"""The prefix that all conversations share, usually a system prompt, goes through the model once."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from qlora_pipelines.components.core.data import chat_template, packing

MIN_TOKENS = 8
"""A shorter prefix saves less than it costs to keep."""


def shared_prefix(encoded: Sequence[chat_template.Encoded]) -> list[int]:
    """The tokens that all conversations begin with, up to before the one that predicts a supervised token.

    The logits at that token are scored, and the prefix goes through the layers without the head.
    """
    if len(encoded) < 2:
        return []
    unsupervised = min(
        next((place for place, label in enumerate(item.labels) if label != chat_template.IGNORED), len(item.labels))
        for item in encoded
    )
    columns = zip(*(item.input_ids[: max(0, unsupervised - 1)] for item in encoded), strict=False)
    prefix = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    return prefix if len(prefix) >= MIN_TOKENS else []


class PrefixCache(DynamicCache):  # type: ignore[misc]  # transformers has no types here
    """A prefix's keys and values, put in front of those of each row; a row's own are not kept."""

    def update(self, key: Any, value: Any, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """The keys and values that a row attends to in one layer, shape (1, key heads, prefix + row, head size)."""
        prefix = self.layers[layer]
        return torch.cat([prefix.keys, key], 2), torch.cat([prefix.values, value], 2)


def prefill(
    causal: Any, decoder: Any, encoded: Sequence[chat_template.Encoded], device: str
) -> tuple[int, PrefixCache | None]:
    """Runs the prefix that all conversations share through the layers of a model.

    Args:
        causal: the model; its attention is that of `core/models/packed_attention.py`.
        decoder: its layers.
        encoded: the conversations.
        device: where the inputs go.

    Returns:
        How many tokens the prefix has, and its cache; 0 and None where there is no prefix, or the model cannot use one.
    """
    prefix = [] if _rotates_by_length(causal.config) else shared_prefix(encoded)
    if not prefix:
        return 0, None
    row = packing.joined([chat_template.Encoded(prefix, [chat_template.IGNORED] * len(prefix))])
    inputs = {name: tensor.to(device) for name, tensor in packing.collate([row]).items() if name != "labels"}
    cache = DynamicCache()
    decoder(**inputs, past_key_values=cache, use_cache=True)
    if cache.get_seq_length() != len(prefix):
        return 0, None  # some architectures keep nothing there
    return len(prefix), PrefixCache([(layer.keys, layer.values) for layer in cache.layers])


def _rotates_by_length(config: Any) -> bool:
    """Whether a token's rotary position depends on the length of its row, as with longrope (Phi-3) and dynamic NTK.

    Then a prefix alone has other keys than in front of a row, and cannot be cached.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [part.get("rope_type") or "" for part in (parameters, *parameters.values()) if isinstance(part, dict)]
    return any("dynamic" in kind or kind == "longrope" for kind in kinds)
