"""The prompt a row is scored with: as it was prepared, with messages for the base, or through another tokenizer."""

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.tokenized import Sample


def with_baseline_messages(
    messages: list[chat_template.Message], samples: Sequence[Sample], tokenizer: Any
) -> list[Sample]:
    """The rows with other turns in place of their system message: schema and examples for a base.

    The scored tokens stay the same, so the losses can be compared.

    Args:
        messages: the turns to put first; none leaves the rows as they are.
        samples: the rows.
        tokenizer: of the model, and of the samples.
    """
    prompted = []
    for sample in samples:
        if messages and sample.messages:
            turns = [*messages, *(message for message in sample.messages if message["role"] != "system")]
            encodings = _encodings(tokenizer, turns, sample, len(messages))
            encoded = _same_answers(encodings, tokenizer, supervised_text(tokenizer, sample.encoded))
            # A template may write an answer differently after other turns; then the row keeps its own prompt.
            if encoded:
                sample = dataclasses.replace(sample, messages=turns, encoded=encoded)
        prompted.append(sample)
    return prompted


def reencode(samples: Sequence[Sample], own: Any, tokenizer: Any) -> list[Sample]:
    """The rows as another model's tokenizer and template write them.

    A row is left out whose scored text is then not the same: it was cut, or the template writes the answer differently.

    Args:
        samples: the rows.
        own: the tokenizer that the samples were encoded with.
        tokenizer: the other model's.
    """
    found = []
    for sample in samples:
        if sample.messages:
            encodings: Iterable[chat_template.Encoded] = _encodings(tokenizer, sample.messages, sample, 0)
        else:
            text = own.decode(sample.encoded.input_ids)
            encodings = [chat_template.encode_spans(tokenizer, text, [(0, len(text))], sys.maxsize)]
        if encoded := _same_answers(encodings, tokenizer, supervised_text(own, sample.encoded)):
            found.append(dataclasses.replace(sample, encoded=encoded))
    return found


def supervised_text(tokenizer: Any, encoded: chat_template.Encoded) -> str:
    """The text of the supervised tokens, without special ones."""
    ids = [label for label in encoded.labels[1:] if label != chat_template.IGNORED]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _encodings(
    tokenizer: Any, turns: list[chat_template.Message], sample: Sample, context: int
) -> Iterator[chat_template.Encoded]:
    """The turns after `context` with all answers supervised, then with the last one only: a row does not say which."""
    for last_only in (False, True):
        yield chat_template.encode(
            tokenizer,
            turns,
            sys.maxsize,
            context,
            tools=sample.tools,
            settings=sample.settings,
            last_only=last_only,
        )


def _same_answers(
    encodings: Iterable[chat_template.Encoded], tokenizer: Any, text: str
) -> chat_template.Encoded | None:
    """The first of the encodings whose supervised text is `text`, or None."""
    return next((one for one in encodings if supervised_text(tokenizer, one).strip() == text.strip()), None)
