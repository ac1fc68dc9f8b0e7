"""From a conversation to token ids and labels, through the model's own chat template.

Training, evaluation and serving all see the text that `render` returns.
"""

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

from qlora_pipelines.components.core.data import turns
from qlora_pipelines.components.core.data.turns import REASONING, WEIGHT
from qlora_pipelines.components.core.errors import InputError, first_line

IGNORED = -100
"""The label of a token that is not supervised (PyTorch's cross-entropy ignores it)."""
TODAY = datetime.datetime(2026, 1, 1)
"""What templates that print the date get. The same rows must give the same tokens on any day, under the same key.

Whoever changes it raises `keys.FORMAT`.
"""

Message = turns.Message
Tools = list[dict[str, Any]]
Settings = dict[str, Any]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids and labels of one conversation, both of shape (tokens,); labels are ids or `IGNORED`.

    `joined`: a token spans the end of a prompt and the start of its answer.
    """

    input_ids: list[int]
    labels: list[int]
    joined: bool = False

    @property
    def supervised(self) -> int:
        """How many tokens are supervised; the first token of a sequence never is, nothing predicts it."""
        return sum(label != IGNORED for label in self.labels[1:])


def compiled(tokenizer: Any, tools: Tools | None = None) -> Any:
    """The chat template as transformers compiles it, once per process: it keeps what it has compiled.

    A base without one is trained on plain text: its template is empty.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(tokenizer.get_chat_template(tools=tools or None) if tokenizer.chat_template else "")


def reads_clock(tokenizer: Any) -> bool:
    """Whether the chat template prints the date, and so gets `TODAY`."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def template_messages(messages: list[Message]) -> list[Message]:
    """The messages as a template gets them: without our marks, and with thoughts under every name that they have."""
    if all(len(message) == 2 for message in messages):
        return messages
    made = []
    for message in messages:
        thoughts = message.get("reasoning_content")
        made.append(
            {key: value for key, value in message.items() if key != WEIGHT}
            | (dict.fromkeys(REASONING, thoughts) if thoughts else {})
        )
    return made


def strftime_now(form: str) -> str:
    """What templates call for today's date: that of `TODAY`."""
    return TODAY.strftime(form)


def render(
    tokenizer: Any,
    messages: list[Message],
    *,
    tools: Tools | None = None,
    settings: Settings | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """The text of a conversation; with `add_generation_prompt`, up to where the assistant is to speak.

    Args:
        tokenizer: has the chat template.
        messages: `[{"role": ..., "content": ...}, ...]`, with `tool_calls` where the assistant calls tools.
        tools: JSON schemas of the tools the assistant may call.
        settings: further variables of the template, of the row's own.
        add_generation_prompt: whether to end with what the template puts before an answer.

    Raises:
        InputError: the template refuses these turns, with its own reason.
    """
    import jinja2

    if not tokenizer.chat_template:
        raise InputError(
            "the base's tokenizer has no chat template: take the model's chat or instruct version, or set"
            " prepare_dataset.chat_template"
        )
    try:
        if reads_clock(tokenizer):
            # transformers makes a text of every variable of ours that is a function; so the template itself gets it.
            compiled(tokenizer, tools).globals["strftime_now"] = strftime_now
        text = tokenizer.apply_chat_template(
            template_messages(messages),
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **(settings or {}),
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
    settings: Settings | None = None,
    last_only: bool = False,
) -> tuple[str, list[Span]]:
    """The rendered conversation, and where in it (start, end) the assistant speaks after the first `context` turns.

    Turns that the row marks as not trained are left out.

    Found by rendering the conversation up to each answer, with the generation prompt, and up to its end: so the
    template need not mark answers with `{% generation %}`. The end-of-turn token belongs to the answer, white space
    that a template puts after it does not.

    Raises:
        InputError: the template refuses the turns, or changes earlier ones such that answers cannot be told apart.
    """

    def rendered(turns: list[Message], prompt: bool = False) -> str:
        return render(tokenizer, turns, tools=tools, settings=settings, add_generation_prompt=prompt)

    text = rendered(messages)
    turns = [
        turn
        for turn, message in enumerate(messages)
        if message["role"] == "assistant" and turn >= context and WEIGHT not in message
    ]
    spans = []
    for turn in turns[-1:] if last_only else turns:
        before = rendered(messages[:turn], prompt=True)
        upto = rendered(messages[: turn + 1]) if turn + 1 < len(messages) else text
        if text.startswith(upto) and upto.startswith(before):
            start, end = len(before), len(upto.rstrip())
        else:
            start, end = _rewritten(tokenizer, rendered, text, before, upto, messages, turn)
        if not _has_words(tokenizer, text[start:end]):
            raise InputError("the chat template writes nothing of the assistant's turn")
        spans.append((start, end))
    return text, spans


def _has_words(tokenizer: Any, answer: str) -> bool:
    """Whether there is more to an answer than special tokens: an answer without words is not to be learnt."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            answer = answer.replace(token.content, "")
    return bool(answer.strip())


def _rewritten(
    tokenizer: Any,
    rendered: Callable[[list[Message]], str],
    text: str,
    before: str,
    upto: str,
    messages: list[Message],
    turn: int,
) -> Span:
    """An answer that the template writes differently once turns follow.

    Qwen3 drops the thinking of an earlier answer, Phi-3 ends only the last turn with the end of text. The answer then
    goes from the generation prompt to the special token after its words; where it has no words (a tool call), to the
    special token with which the turn ended while it was the last. It may not reach into the next turn.
    """
    start = _end_of_prefix(text, before)
    if not start:
        raise InputError(
            "the chat template asks for an answer in other words than it puts before one, so the model would be asked"
            " otherwise than it was trained; another one can be given as chat_template"
        )
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
    if not end or end > _next_turn(rendered, text, messages, turn):
        raise InputError("the chat template rewrites earlier turns: its answers cannot be told apart")
    return start, end


def _end_of_prefix(text: str, before: str) -> int:
    """Where a text goes on after the words of `before`; 0 where it does not begin with them.

    The space between words may differ: Hermes' template ends the answer of a tool otherwise once a turn follows.
    """
    at = 0
    for place, character in enumerate(before):
        while at < len(text) and text[at] != character and text[at].isspace():
            at += 1
        if at < len(text) and text[at] == character:
            at += 1
        elif not character.isspace() or place + 1 == len(before):
            return 0
    return at


def _next_turn(rendered: Callable[[list[Message]], str], text: str, messages: list[Message], turn: int) -> int:
    """Where the words of the next turn begin: where the text changes when they are changed."""
    if turn + 1 == len(messages):
        return len(text)
    content = str(messages[turn + 1].get("content") or "")
    other = messages[turn + 1] | {"content": ("b" if content.lstrip().startswith("a") else "a") + content}
    changed = rendered([*messages[: turn + 1], other, *messages[turn + 2 :]])
    pairs = enumerate(zip(text, changed, strict=False))
    return next((place for place, (one, two) in pairs if one != two), min(len(text), len(changed)))


def encode(
    tokenizer: Any,
    messages: list[Message],
    max_length: int,
    context: int = 0,
    *,
    tools: Tools | None = None,
    settings: Settings | None = None,
    last_only: bool = False,
) -> Encoded:
    """Tokenises a conversation once, as a whole, and labels what the assistant says.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        messages: `[{"role": ..., "content": ...}, ...]`.
        max_length: tokens; what is longer is cut at the end.
        context: number of turns at the start that are not supervised, whoever speaks.
        tools: JSON schemas of the tools the assistant may call.
        settings: further variables of the template, of the row's own.
        last_only: whether only the last answer is supervised.

    Raises:
        InputError: the chat template cannot be used on these turns.
    """
    text, spans = answers(tokenizer, messages, context, tools=tools, settings=settings, last_only=last_only)
    return encode_spans(tokenizer, text, spans, max_length)


def encode_spans(tokenizer: Any, text: str, spans: list[Span], max_length: int) -> Encoded:
    """Tokenises a text and labels the tokens that have a part in one of the spans (start, end), in characters.

    Where a template ends its prompt in a space, that and the answer's first letters are one token. It is labelled:
    without it the answer would lose its beginning, and one of a single word all there is to learn.
    """
    tokens = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=True, max_length=max_length
    )
    ids: list[int] = tokens["input_ids"]
    labels = [
        token if any(first < end and start < last and first < last for start, end in spans) else IGNORED
        for token, (first, last) in zip(ids, tokens["offset_mapping"], strict=True)
    ]
    starts = {start for start, _ in spans}
    joined = any(first < start < last for first, last in tokens["offset_mapping"] for start in starts)
    return Encoded(ids, labels, joined)


def encode_text(tokenizer: Any, text: str, max_length: int) -> Encoded:
    """Tokenises plain text, which is supervised whole, and begins and ends with one of the tokens for that."""
    ids = [*tokenizer(text)["input_ids"]]
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and ids[:2] == [begin, begin]:  # the text has its own
        del ids[0]
    if end is not None and ids[-1:] != [end]:
        ids.append(end)
    return Encoded(ids[:max_length], ids[:max_length])
