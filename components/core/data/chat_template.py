"""From a conversation to token ids and labels, through the model's own chat template.

Training, evaluation and serving all see the text that `render` returns.
"""

import dataclasses
from typing import Any

from qlora_pipelines.components.core.errors import InputError, first_line

IGNORED = -100
"""The label of a token that is not supervised (PyTorch's cross-entropy ignores it)."""

Message = dict[str, Any]
Tools = list[dict[str, Any]]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one conversation, both of shape (tokens,); labels are ids or `IGNORED`."""

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """How many tokens are supervised; the first token of a sequence never is, nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def render(
    tokenizer: Any, messages: list[Message], *, tools: Tools | None = None, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation; with `add_generation_prompt`, up to where the assistant is to speak.

    Args:
        tokenizer: has the chat template.
        messages: `[{"role": ..., "content": ...}, ...]`, with `tool_calls` where the assistant calls tools.
        tools: JSON schemas of the tools the assistant may call.
        add_generation_prompt: whether to end with what the template puts before an answer.

    Raises:
        InputError: the template refuses these turns, with its own reason.
    """
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except jinja2.TemplateError as error:
        reason = first_line(error)
        raise InputError(f"the chat template refuses: {reason}") from None
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as error:
        # What a template's expressions raise on turns it was not written for; their texts may quote the data.
        raise InputError(f"the chat template fails on these turns ({type(error).__name__})") from None
    return str(text)


def answers(
    tokenizer: Any,
    messages: list[Message],
    context: int = 0,
    *,
    tools: Tools | None = None,
    last_only: bool = False,
) -> tuple[str, list[Span]]:
    """The rendered conversation, and where in it (start, end) the assistant speaks after the first `context` turns.

    Found by rendering the conversation up to each answer, with the generation prompt, and up to its end: so the
    template need not mark answers with `{% generation %}`. The end-of-turn token belongs to the answer, white space
    that a template puts after it does not.

    Raises:
        InputError: the template refuses the turns, or changes earlier ones such that answers cannot be told apart.
    """
    text = render(tokenizer, messages, tools=tools)
    turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant" and turn >= context]
    spans = []
    for turn in turns[-1:] if last_only else turns:
        before = render(tokenizer, messages[:turn], tools=tools, add_generation_prompt=True)
        upto = render(tokenizer, messages[: turn + 1], tools=tools) if turn + 1 < len(messages) else text
        if text.startswith(upto) and upto.startswith(before):
            spans.append((len(before), len(upto.rstrip())))
        else:
            spans.append(_rewritten(tokenizer, text, before, upto, messages, turn, tools))
    return text, spans


def _rewritten(
    tokenizer: Any, text: str, before: str, upto: str, messages: list[Message], turn: int, tools: Tools | None
) -> Span:
    """An answer that the template writes differently once turns follow.

    Qwen3 drops the thinking of an earlier answer, Phi-3 ends only the last turn with the end of text. The answer then
    goes from the generation prompt to the special token after its words; where it has no words (a tool call), to the
    special token with which the turn ended while it was the last. It may not reach into the next turn.
    """
    start = len(before)
    if not text.startswith(before):
        raise InputError("the chat template asks for an answer in other words than it puts before one")
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    content = str(messages[turn].get("content") or "").strip()
    end = 0
    if content and text.startswith(content, start):
        after = text[start + len(content) :].lstrip()
        ending = max((token for token in special if after.startswith(token)), key=len, default="")
        end = len(text) - len(after) + len(ending) if ending else 0
    elif not content:
        ending = max((token for token in special if upto.rstrip().endswith(token)), key=len, default="")
        end = text.find(ending, start) + len(ending) if ending and ending in text[start:] else 0
    if not end or end > _next_turn(tokenizer, text, messages, turn, tools):
        raise InputError("the chat template rewrites earlier turns: its answers cannot be told apart")
    return start, end


def _next_turn(tokenizer: Any, text: str, messages: list[Message], turn: int, tools: Tools | None) -> int:
    """Where the words of the next turn begin: where the text changes when they are changed."""
    if turn + 1 == len(messages):
        return len(text)
    content = str(messages[turn + 1].get("content") or "")
    other = messages[turn + 1] | {"content": ("b" if content.lstrip().startswith("a") else "a") + content}
    changed = render(tokenizer, [*messages[: turn + 1], other, *messages[turn + 2 :]], tools=tools)
    pairs = enumerate(zip(text, changed, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(text), len(changed)))


def encode(
    tokenizer: Any,
    messages: list[Message],
    max_length: int,
    context: int = 0,
    *,
    tools: Tools | None = None,
    last_only: bool = False,
) -> Encoded:
    """Tokenises a conversation once, as a whole, and labels what the assistant says.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: `[{"role": ..., "content": ...}, ...]`.
        max_length: tokens; what is longer is cut at the end.
        context: number of turns at the start that are not supervised, whoever speaks.
        tools: JSON schemas of the tools the assistant may call.
        last_only: whether only the last answer is supervised.

    Raises:
        InputError: the chat template cannot be used on these turns.
    """
    text, spans = answers(tokenizer, messages, context, tools=tools, last_only=last_only)
    return encode_spans(tokenizer, text, spans, max_length)


def encode_spans(tokenizer: Any, text: str, spans: list[Span], max_length: int) -> Encoded:
    """Tokenises a text and labels the tokens that are wholly within one of the spans (start, end), in characters."""
    tokens = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=max_length
    )
    ids: list[int] = tokens["input_ids"]
    labels = [
        token if any(start <= first and last <= end and first < last for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, tokens["offset_mapping"], strict=True)
    ]
    return Encoded(ids, labels)


def encode_text(tokenizer: Any, text: str, max_length: int) -> Encoded:
    """Tokenises plain text, which is supervised whole and ends with the end of text."""
    ids = [*tokenizer(text)["input_ids"]]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return Encoded(ids[:max_length], ids[:max_length])
