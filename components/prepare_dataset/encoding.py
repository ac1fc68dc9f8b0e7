"""From conversations to token ids and supervised spans, many at a time.

`core/data/chat_template` is the definition: it renders a conversation up to each answer and tokenises with offsets.
Here the same result comes from one rendering and from fastokens, wherever it can be seen to be the same. Every other
row goes through `chat_template` itself. `Encoder.check` compares the two on a sample of the data.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qlora_pipelines.components.core.data import chat_template, formats
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.errors import InputError

Ids = NDArray[np.int32]
NEAR = 64
"""Characters before a place in which its special token is sought first: no token is that long, texts are longer."""


class Row(NamedTuple):
    """One encoded conversation: ids of shape (tokens,), cut at `max_length`, and spans (start, end) of supervised ids.

    `tokens` is the length before the cut.
    """

    ids: Ids
    spans: list[chat_template.Span]
    tokens: int


class _Frame(NamedTuple):
    """What a template puts around an answer: the mark that asks for one, and the ending."""

    prompt: str
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
    """

    def __init__(self, tokenizer: Any, max_length: int, last_only: bool, fast: bool = True) -> None:
        """See the class."""
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.tokenizer, self.max_length, self.last_only = tokenizer, max_length, last_only
        # What apply_chat_template renders with; `check` sees that nothing it does besides matters here.
        self._template = _compile_jinja_template(tokenizer.get_chat_template())
        given = {"tools": None, "documents": None, "add_generation_prompt": False}
        self._variables = {**self._template.globals, **given, **tokenizer.special_tokens_map}
        self._borders = _borders(tokenizer)
        self._frame = self._find_frame()
        self._known: dict[str, bytes] = {}
        self._fast = _fastokens(tokenizer) if fast else None

    @property
    def fast(self) -> bool:
        """Whether fastokens is at work."""
        return self._fast is not None

    def check(self, conversations: Sequence[Conversation]) -> int:
        """How many of these differ from what `chat_template` gives; if any does, fastokens is no longer used."""
        if not self.fast:
            return 0
        different = 0
        for conversation, row in zip(conversations, self.encode(conversations), strict=True):
            different += not _equal(row, self._by_definition(conversation))
        if different:
            self._fast = None
        return different

    def encode_checked(self, conversations: Sequence[Conversation]) -> tuple[list[Row | str], bool]:
        """As `encode`; if `chat_template` encodes the first row otherwise, all rows come from there: then True."""
        rows = self.encode(conversations)
        if not rows or not self.fast or _equal(rows[0], self._by_definition(conversations[0])):
            return rows, False
        return [self._by_definition(conversation) for conversation in conversations], True

    def encode(self, conversations: Sequence[Conversation]) -> list[Row | str]:
        """The rows, or for a row that the chat template refuses the reason."""
        if self._fast is None:
            return [self._by_definition(conversation) for conversation in conversations]
        cut = [self._pieces(conversation) for conversation in conversations]
        texts = [text for pieces in cut if isinstance(pieces, _Pieces) for text in pieces.texts]
        flat, ends = self._fast.encode_batch_flat(texts)
        offsets = np.frombuffer(ends, np.uint64).tolist()
        ids = np.frombuffer(flat, np.int32)
        rows: list[Row | str] = []
        piece = 0
        for conversation, pieces in zip(conversations, cut, strict=True):
            if not isinstance(pieces, _Pieces):
                rows.append(pieces if isinstance(pieces, str) else self._by_definition(conversation))
                continue
            bounds = offsets[piece : piece + len(pieces.texts) + 1]
            piece += len(pieces.texts)
            spans = self._spans(flat, bounds, pieces.answers)
            rows.append(self._by_definition(conversation) if spans is None else self._row(ids, bounds, spans))
        return rows

    def _row(self, ids: Ids, bounds: list[int], spans: list[chat_template.Span]) -> Row:
        tokens = bounds[-1] - bounds[0]
        length = min(tokens, self.max_length)
        kept = [(start, min(end, length)) for start, end in spans if start < length]
        return Row(ids[bounds[0] : bounds[0] + length], kept, tokens)

    def _spans(self, flat: bytes, bounds: list[int], answers: list[tuple[int, str]]) -> list[chat_template.Span] | None:
        """Answers in tokens, or None where a token reaches over an answer's start."""
        spans = []
        for piece, before in answers:
            head = self._ids(before)
            start = bounds[piece]
            if flat[4 * start : 4 * start + len(head)] != head or 4 * (bounds[piece + 1] - start) < len(head):
                return None
            spans.append((start + len(head) // 4 - bounds[0], bounds[piece + 1] - bounds[0]))
        return spans

    def _ids(self, text: str) -> bytes:
        found = self._known.get(text)
        if found is None:
            assert self._fast is not None
            if len(self._known) > 1000:  # a template that has no border near answers: the texts are the questions
                self._known.clear()
            found = self._known[text] = bytes(self._fast.encode_batch_flat([text])[0]) if text else b""
        return found

    def _pieces(self, conversation: Conversation) -> _Pieces | str | None:
        """The pieces, or a reason to reject the row, or None where only the definition can tell."""
        if not conversation.messages:
            return None
        try:
            text, spans = self._rendered(conversation)
        except InputError as error:
            return str(error)
        texts, answers, done = [], [], 0
        for start, end in spans:
            border = self._border_before(text, done, start)
            if not self._ends_at_border(text, border, end):
                return None
            if border > done:
                texts.append(text[done:border])
            answers.append((len(texts), text[border:start]))
            texts.append(text[border:end])
            done = end
        if done < len(text):
            texts.append(text[done:])
        return _Pieces(texts, answers)

    def _border_before(self, text: str, done: int, start: int) -> int:
        """The end of the last special token between `done` and `start`; `done` where there is none."""
        found = self._borders.findall(text, max(done, start - NEAR), start)
        if not found:
            found = self._borders.findall(text, done, start)
        return text.rindex(found[-1], done, start) + len(found[-1]) if found else done

    def _ends_at_border(self, text: str, start: int, end: int) -> bool:
        # A special token is where any text is cut anyway: so cutting there changes no ids.
        found = self._borders.findall(text, max(start, end - NEAR), end)
        return bool(found) and text.endswith(found[-1], start, end)

    def _rendered(self, conversation: Conversation) -> tuple[str, list[chat_template.Span]]:
        messages, tools, *_ = conversation
        frame = self._frame
        if frame and not tools and all(len(message) == 2 for message in messages):
            text = self._render(messages)
            spans = _framed(text, frame, [m["content"] for m in messages if m["role"] == "assistant"])
            if spans:
                return text, spans[-1:] if self.last_only else spans
        return chat_template.answers(self.tokenizer, messages, tools=tools, last_only=self.last_only)

    def _render(self, messages: list[chat_template.Message]) -> str:
        import jinja2

        try:
            # As Template.render, but that merges all of the environment's names anew for each row.
            context = self._template.new_context({**self._variables, "messages": messages}, shared=True)
            text = "".join(self._template.root_render_func(context))
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ValueError, AttributeError):
            return chat_template.render(self.tokenizer, messages)  # says why
        return text

    def _find_frame(self) -> _Frame | None:
        question = [{"role": "user", "content": "q"}]
        try:
            before = chat_template.render(self.tokenizer, question, for_answer=True)
            bare = chat_template.render(self.tokenizer, question)
            whole = chat_template.render(self.tokenizer, [*question, {"role": "assistant", "content": "a"}])
        except InputError:
            return None
        if not (before.startswith(bare) and len(before) > len(bare) and whole.startswith(f"{before}a")):
            return None
        return _Frame(before[len(bare) :], whole[len(before) + 1 :].rstrip())

    def _by_definition(self, conversation: Conversation) -> Row | str:
        try:
            return by_definition(self.tokenizer, conversation, self.max_length, self.last_only)
        except InputError as error:
            return str(error)


def by_definition(tokenizer: Any, conversation: Conversation, max_length: int, last_only: bool) -> Row:
    """Encodes one conversation through `core/data`; plain text is supervised whole, and ends with the end of text.

    Raises:
        InputError: the chat template cannot be used on it.
    """
    encoded = formats.encode(tokenizer, conversation, 2**31 - 1, last_only)
    ids = encoded.input_ids
    # A run of supervised tokens starts and ends where the mark changes.
    marks = np.array([False, *(label != chat_template.IGNORED for label in encoded.labels), False])
    edges = np.flatnonzero(marks[1:] != marks[:-1]).tolist()
    length = min(len(ids), max_length)
    spans = zip(edges[::2], edges[1::2], strict=True)
    kept = [(start, min(end, length)) for start, end in spans if start < length]
    return Row(np.array(ids[:length], np.int32), kept, len(ids))


def _framed(text: str, frame: _Frame, contents: list[str]) -> list[chat_template.Span] | None:
    """Where the answers are in a rendered text, if it has the mark for exactly these answers, each in its frame."""
    parts = text.split(frame.prompt)
    if len(parts) != len(contents) + 1:
        return None
    spans = []
    at = len(parts[0])
    for part, content in zip(parts[1:], contents, strict=True):
        at += len(frame.prompt)
        answer = content + frame.ending
        if not part.startswith(answer):
            answer = content.strip() + frame.ending
            if not part.startswith(answer):
                return None
        spans.append((at, at + len(answer)))
        at += len(part)
    return spans


def _borders(tokenizer: Any) -> re.Pattern[str]:
    """Matches the special tokens that cut a text whatever stands around them."""
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
    except Exception:  # whatever it says of a tokenizer it does not know: then the model's own is used
        return None


def _equal(row: Row | str, wanted: Row | str) -> bool:
    if isinstance(row, str) or isinstance(wanted, str):
        return row == wanted
    return np.array_equal(row.ids, wanted.ids) and _joined(row) == _joined(wanted) and row.tokens == wanted.tokens


def _joined(row: Row) -> list[int]:
    return [place for start, end in row.spans for place in range(start, end)]
