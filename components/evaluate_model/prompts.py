"""How a row is put to a model: as it was prepared, in the base's own words, or through another tokenizer."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample


def in_own_words(before: list[chat_template.Message], samples: Sequence[Sample], tokenizer: Any) -> list[Sample]:
    """The rows with other turns in place of their system message: schema and examples for a base.

    What is scored stays the same tokens, so the losses can be compared.

    Args:
        before: the turns to put first; none leaves the rows as they are.
        samples: the rows.
        tokenizer: of the model, and of the samples.
    """
    asked = []
    for sample in samples:
        if before and sample.messages:
            turns = [*before, *(message for message in sample.messages if message["role"] != "system")]
            encoded = _encoded(tokenizer, turns, sample, len(before), supervised_text(tokenizer, sample.encoded))
            # A template may write an answer otherwise after other turns; then the row is asked as it is.
            if encoded:
                sample = dataclasses.replace(sample, messages=turns, encoded=encoded)
        asked.append(sample)
    return asked


def through(tokenizer: Any, samples: Sequence[Sample], own: Any) -> list[Sample]:
    """The rows as another model's tokenizer and template write them.

    A row is left out whose scored text is not the same then: it was cut, or the template writes the answer otherwise.

    Args:
        tokenizer: the other model's.
        samples: the rows.
        own: the tokenizer that the samples were encoded with.
    """
    asked = []
    for sample in samples:
        text = supervised_text(own, sample.encoded)
        if sample.messages:
            encoded = _encoded(tokenizer, sample.messages, sample, 0, text)
        else:
            whole = own.decode(sample.encoded.input_ids)
            encoded = _same(
                tokenizer, chat_template.encode_spans(tokenizer, whole, [(0, len(whole))], sys.maxsize), text
            )
        if encoded:
            asked.append(dataclasses.replace(sample, encoded=encoded))
    return asked


def supervised_text(tokenizer: Any, encoded: chat_template.Encoded) -> str:
    """The text of the supervised tokens, without special ones."""
    ids = [label for label in encoded.labels[1:] if label != chat_template.IGNORED]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _encoded(
    tokenizer: Any, turns: list[chat_template.Message], sample: Sample, context: int, text: str
) -> chat_template.Encoded | None:
    """Encodes turns such that `text` is what is supervised, all answers or only the last one; None if neither is."""
    for last_only in (False, True):
        found = chat_template.encode(tokenizer, turns, sys.maxsize, context, tools=sample.tools, last_only=last_only)
        if same := _same(tokenizer, found, text):
            return same
    return None


def _same(tokenizer: Any, encoded: chat_template.Encoded, text: str) -> chat_template.Encoded | None:
    return encoded if supervised_text(tokenizer, encoded).strip() == text.strip() else None
