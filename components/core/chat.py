"""From a conversation to token ids and labels, through the model's own chat template.

Training, evaluation and serving all see the text that `render` gives.
"""

import dataclasses
from typing import Any

from components.core.errors import InputError

IGNORED = -100
"""The label of a token that is not supervised (PyTorch's cross-entropy ignores it)."""

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one conversation, both of shape (tokens,); labels are ids or `IGNORED`."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """How many tokens are supervised; the first token of a sequence never is, nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def render(tokenizer: Any, messages: list[Message], *, for_answer: bool = False) -> str:
    """The text of a conversation; with `for_answer`, ending where the assistant is to speak."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=for_answer)
    return str(text)


def answers(tokenizer: Any, messages: list[Message], context: int = 0) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and where in it (start, end) the assistant speaks after the first `context` turns.

    Found by rendering the conversation up to each answer, with the mark that asks for one, and up to its end: so
    it needs no `{% generation %}` mark in the template. The end-of-turn token belongs to the answer, white space that a
    template puts after it does not.

    Raises:
        InputError: the template changes earlier turns when later ones follow, so answers cannot be told apart.
    """
    text = render(tokenizer, messages)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant" or turn < context:
            continue
        before = render(tokenizer, messages[:turn], for_answer=True)
        upto = render(tokenizer, messages[: turn + 1])
        if not (text.startswith(upto) and upto.startswith(before)):
            raise InputError("the chat template rewrites earlier turns: its answers cannot be told apart")
        spans.append((len(before), len(upto.rstrip())))
    return text, spans


def encode(tokenizer: Any, messages: list[Message], max_length: int, context: int = 0) -> Encoded:
    """Tokenises a conversation once, as a whole, and labels what the assistant says.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: `[{"role": ..., "content": ...}, ...]`.
        max_length: tokens; what is longer is cut at the end.
        context: so many turns at the start are not supervised, whoever speaks.
    """
    text, spans = answers(tokenizer, messages, context)
    tokens = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=max_length
    )
    ids: list[int] = tokens["input_ids"]
    labels = [
        token if any(start <= first and last <= end and first < last for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, tokens["offset_mapping"], strict=True)
    ]
    return Encoded(ids, labels)
