"""Tokens that a tokenizer has and its model has no embedding for: training on one would end in an index error.

Gemma 3 1B's tokenizer has a token for images beyond its 262,144 embeddings; nobody notices until a row has it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.models import loading


def beyond(tokenizer: Any, folder: Path) -> dict[int, str]:
    """The tokens that the model has no embedding for, by id; none where its config.json does not tell.

    Args:
        tokenizer: of the model.
        folder: with the model's config.json.
    """
    try:
        size = getattr(loading.described(folder).get_text_config(), "vocab_size", None)
    except Exception:  # no config.json, or one that transformers does not know: whoever loads the model says so
        return {}
    if not isinstance(size, int):
        return {}
    return {number: token for token, number in sorted(tokenizer.get_vocab().items()) if number >= size}


def missing(ids: Sequence[int], tokens: dict[int, str]) -> str:
    """Why a row cannot be used; empty: the model has an embedding for each of its tokens.

    Args:
        ids: the row's.
        tokens: what `beyond` found.
    """
    found = next((tokens[number] for number in ids if number in tokens), "") if tokens else ""
    return f"has the token {found}, for which the model has no embedding" if found else ""
