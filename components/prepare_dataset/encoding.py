"""From conversations to token ids and supervised spans, many at a time.

`core/data/chat_template` is the reference: it renders a conversation up to each answer and tokenises with offsets.
Here the same result comes from one rendering and from fastokens, which is many times as fast but gives no offsets. So
a text is cut at special tokens, where no token can reach across, and each answer ends such a piece. Every row for which
this does not work goes through `chat_template` itself. `Encoder.check` compares the two on a sample of the data.
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import chat_template, formats, template_coverage, template_variables
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.errors import InputError

Ids = NDArray[np.int32]
LOOKBACK = 64
"""Characters before a place that are searched for its special token first: no token is that long, texts are longer."""


class Row(NamedTuple):
    """One encoded conversation: ids of shape (tokens,), cut at `max_length`, and spans (start, end) of supervised ids.

    `tokens` is the length before the cut; `joined` is that of `chat_template.Encoded`.
    """

    ids: Ids
    spans: list[chat_template.Span]
    tokens: int
    joined: bool = False


class _AnswerFormat(NamedTuple):
    """What a template puts around an answer."""

    generation_prompt: str
    ending: str


class _Pieces(NamedTuple):
    """A rendered text cut at special tokens; where the answers are: (piece, text of that piece before the answer)."""

    texts: list[str]
    answers: list[tuple[int, str]]


class Encoder:
    """Encodes conversations as `core/chat_template.encode` does.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        max_length: tokens; what is longer is cut at the end.
        last_only: whether only the last answer is supervised.
        fast: whether to try fastokens.
        beyond: tokens without an embedding, as `vocabulary.beyond` finds them.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, last_only: bool, fast: bool = True, beyond: dict[int, str] | None = None
    ) -> None:
        """See the class."""
        self.tokenizer, self.max_length, self.last_only = tokenizer, max_length, last_only
        self.beyond = beyond or {}
        # What apply_chat_template renders with; `check` shows whether anything else that it does matters here.
        self._template = chat_template.compiled(tokenizer)
        given: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": False}
        given["strftime_now"] = chat_template.strftime_now
        self._variables = {**self._template.globals, **given, **tokenizer.special_tokens_map}
        self._special_tokens = _special_tokens(tokenizer)
        self._answer_format = self._find_answer_format()
        self.variables = template_variables.of(tokenizer)
        self._cache: dict[str, bytes] = {}
        self._fast = _fastokens(tokenizer) if fast else None

    @property
    def fast(self) -> bool:
        """Whether fastokens is used."""
        return self._fast is not None

    def check(self, conversations: Sequence[Conversation]) -> int:
        """How many of these differ from what `chat_template` gives; if any does, fastokens is no longer used."""
        if not self.fast:
            return 0
        rows = zip(conversations, self.encode(conversations), strict=True)
        different = sum(not _equal(row, self._reference(conversation)) for conversation, row in rows)
        if different:
            self._fast = None
        return different

    def encode_checked(self, conversations: Sequence[Conversation]) -> tuple[list[Row | str], bool]:
        """As `encode`; if `chat_template` encodes the first row otherwise, all rows come from there: then True."""
        rows = self.encode(conversations)
        if not rows or not self.fast or _equal(rows[0], self._reference(conversations[0])):
            return rows, False
        return [self._reference(conversation) for conversation in conversations], True

    def encode(self, conversations: Sequence[Conversation]) -> list[Row | str]:
        """The rows, or for a row that the chat template refuses the reason."""
        if self._fast is None:
            return [self._reference(conversation) for conversation in conversations]
        cut = [self._pieces(conversation) for conversation in conversations]
        texts = [text for pieces in cut if isinstance(pieces, _Pieces) for text in pieces.texts]
        flat, ends = self._fast.encode_batch_flat(texts)
        offsets = np.frombuffer(ends, np.uint64).tolist()
        ids = np.frombuffer(flat, np.int32)
        rows: list[Row | str] = []
        piece = 0
        for conversation, pieces in zip(conversations, cut, strict=True):
            if not isinstance(pieces, _Pieces):
                rows.append(pieces if isinstance(pieces, str) else self._reference(conversation))
                continue
            bounds = offsets[piece : piece + len(pieces.texts) + 1]
            piece += len(pieces.texts)
            spans = self._spans(flat, bounds, pieces.answers)
            if spans is None:
                rows.append(self._reference(conversation))
            else:
                rows.append(_cut(ids[bounds[0] : bounds[-1]], spans, self.max_length))
        return rows

    def _spans(self, flat: bytes, bounds: list[int], answers: list[tuple[int, str]]) -> list[chat_template.Span] | None:
        """Answers in tokens, or None where a token reaches across the start of an answer.

        An answer starts within its piece, after the generation prompt. Where the piece begins with the very ids of
        that text tokenised alone, its tokens end where the answer starts. `flat` has 4 bytes per id.
        """
        spans = []
        for piece, before in answers:
            head = self._ids(before)
            start = bounds[piece]
            if flat[4 * start : 4 * start + len(head)] != head or 4 * (bounds[piece + 1] - start) < len(head):
                return None
            spans.append((start + len(head) // 4 - bounds[0], bounds[piece + 1] - bounds[0]))
        return spans

    def _ids(self, text: str) -> bytes:
        if text not in self._cache:
            assert self._fast is not None
            if len(self._cache) > 1000:  # a template without a special token near answers: the texts are the questions
                self._cache.clear()
            self._cache[text] = bytes(self._fast.encode_batch_flat([text])[0]) if text else b""
        return self._cache[text]

    def _pieces(self, conversation: Conversation) -> _Pieces | str | None:
        """The pieces, or a reason to reject the row, or None where only the reference can tell."""
        if not conversation.messages:
            return None
        try:
            text, spans = self._rendered(conversation)
        except InputError as error:
            return str(error)
        texts, answers, done = [], [], 0
        for start, end in spans:
            cut = self._end_of_special_token(text, done, start)
            # A tokenizer cuts a text at special tokens anyway: so cutting there changes no ids.
            ending = self._special_tokens.findall(text, max(cut, end - LOOKBACK), end)
            if not ending or not text.endswith(ending[-1], cut, end):
                return None
            if cut > done:
                texts.append(text[done:cut])
            answers.append((len(texts), text[cut:start]))
            texts.append(text[cut:end])
            done = end
        if done < len(text):
            texts.append(text[done:])
        return _Pieces(texts, answers)

    def _end_of_special_token(self, text: str, done: int, start: int) -> int:
        """The end of the last special token between `done` and `start`; `done` where there is none."""
        find = self._special_tokens.findall
        found = find(text, max(done, start - LOOKBACK), start) or find(text, done, start)
        return text.rindex(found[-1], done, start) + len(found[-1]) if found else done

    def _rendered(self, conversation: Conversation) -> tuple[str, list[chat_template.Span]]:
        messages, tools, settings = conversation.messages, conversation.tools, conversation.settings
        text, spans = None, None
        if self._answer_format and not tools and not settings and all(len(message) == 2 for message in messages):
            text = self._render(messages)
            contents = [message["content"] for message in messages if message["role"] == "assistant"]
            spans = _answer_spans(text, self._answer_format, contents)
        if lost := template_coverage.check(self.tokenizer, messages, tools, settings, text).lost:
            raise InputError(lost)
        if text and spans:
            return text, spans[-1:] if self.last_only else spans
        return chat_template.answers(self.tokenizer, messages, tools=tools, settings=settings, last_only=self.last_only)

    def _render(self, messages: list[chat_template.Message]) -> str:
        import jinja2

        try:
            # As Template.render, which merges all names of the environment again for each row.
            context = self._template.new_context({**self._variables, "messages": messages}, shared=True)
            return "".join(self._template.root_render_func(context))
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError):
            return chat_template.render(self.tokenizer, messages)  # says why

    def _find_answer_format(self) -> _AnswerFormat | None:
        question = [{"role": "user", "content": "q"}]
        with contextlib.suppress(InputError):
            before = chat_template.render(self.tokenizer, question, add_generation_prompt=True)
            bare = chat_template.render(self.tokenizer, question)
            whole = chat_template.render(self.tokenizer, [*question, {"role": "assistant", "content": "a"}])
            if before.startswith(bare) and len(before) > len(bare) and whole.startswith(f"{before}a"):
                return _AnswerFormat(before[len(bare) :], whole[len(before) + 1 :].rstrip())
        return None

    def _reference(self, conversation: Conversation) -> Row | str:
        try:
            return reference(self.tokenizer, conversation, self.max_length, self.last_only)
        except InputError as error:
            return str(error)


def reference(tokenizer: Any, conversation: Conversation, max_length: int, last_only: bool) -> Row:
    """Encodes one conversation through `core/data`; plain text is supervised whole, and ends with the end of text.

    Raises:
        InputError: the chat template cannot be used on it.
    """
    encoded = formats.encode(tokenizer, conversation, 2**31 - 1, last_only)
    # A span of supervised tokens starts and ends where this changes.
    supervised = np.array([False, *(label != chat_template.IGNORED for label in encoded.labels), False])
    edges = np.flatnonzero(supervised[1:] != supervised[:-1]).tolist()
    row = _cut(np.array(encoded.input_ids, np.int32), [*zip(edges[::2], edges[1::2], strict=True)], max_length)
    return row._replace(joined=encoded.joined)


def _cut(ids: Ids, spans: list[chat_template.Span], max_length: int) -> Row:
    kept = [(start, min(end, max_length)) for start, end in spans if start < max_length]
    return Row(ids[:max_length], kept, len(ids))


def _answer_spans(text: str, answer_format: _AnswerFormat, contents: list[str]) -> list[chat_template.Span] | None:
    """Where the answers are in a rendered text, if it has a generation prompt and the ending for each, and no more."""
    prompt, ending = answer_format
    first, *parts = text.split(prompt)
    if len(parts) != len(contents):
        return None
    spans = []
    at = len(first)
    for part, content in zip(parts, contents, strict=True):
        at += len(prompt)
        answer = next((a for a in (content + ending, content.strip() + ending) if part.startswith(a)), None)
        if answer is None:
            return None
        spans.append((at, at + len(answer)))
        at += len(part)
    return spans


def _special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the special tokens that cut a text whatever is around them."""
    plain = [
        re.escape(token.content)
        for token in tokenizer.added_tokens_decoder.values()
        if not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    ]
    return re.compile("|".join(sorted(plain, key=len, reverse=True)) or r"(?!)")


def _fastokens(tokenizer: Any) -> Any:
    """The same tokenizer in fastokens, or None where it cannot take it."""
    import fastokens

    try:
        return fastokens.Tokenizer.from_json_str(tokenizer.backend_tokenizer.to_str())
    except Exception:  # whatever it raises on a tokenizer that it does not know: the model's own is used instead
        return None


def _equal(row: Row | str, wanted: Row | str) -> bool:
    if isinstance(row, str) or isinstance(wanted, str):
        return row == wanted
    # Two answers without a token between them are one span in the reference: so positions are compared.
    one, other = ([place for span in each.spans for place in range(*span)] for each in (row, wanted))
    return np.array_equal(row.ids, wanted.ids) and one == other and row.tokens == wanted.tokens
