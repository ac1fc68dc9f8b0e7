"""Whether a chat template writes all that a conversation holds: else it would be lost without a word.

What a template writes depends on which parts the turns have, and seldom on their words. So each part is replaced by a
word that occurs nowhere else, and what is then missing in the rendered text is not written. That is done once for all
conversations of the same parts; the words themselves are only looked for in the row's own text.
"""

import json
import weakref
from typing import Any, NamedTuple

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.chat_template import Message, Settings, Tools
from qlora_pipelines.components.core.errors import InputError


class Coverage(NamedTuple):
    """What a template does not write.

    Attributes:
        lost: why a row must not be trained on, or ''.
        links: keys that only connect turns or name a speaker; many templates leave them out on purpose.
    """

    lost: str = ""
    links: tuple[str, ...] = ()


_found: weakref.WeakKeyDictionary[Any, dict[Any, Coverage | None]] = weakref.WeakKeyDictionary()
SHAPES = 10_000
"""Most shapes of conversations that are remembered for a tokenizer."""


def check(
    tokenizer: Any, messages: list[Message], tools: Tools, settings: Settings, text: str | None = None
) -> Coverage:
    """What the tokenizer's chat template does not write of a conversation.

    Args:
        tokenizer: has the chat template.
        messages: the conversation.
        tools: its tools.
        settings: its variables of the template.
        text: the rendered conversation; None: it is rendered here if it is needed.

    Raises:
        InputError: the template refuses the turns.
    """
    known = _found.setdefault(tokenizer, {})
    key = (
        tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else "",
        _shape(messages, tools, settings),
    )
    if key not in known:
        if len(known) >= SHAPES:
            known.clear()
        known[key] = _of_shape(tokenizer, messages, tools, settings)
    found = known[key]
    if found and found.lost:
        return found
    if text is None:
        text = chat_template.render(tokenizer, messages, tools=tools, settings=settings)
    if found is None:
        names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
        found = Coverage("" if all(name in text for name in names) else _lost("tool calls"))
    for turn, message in enumerate(messages):
        content = message["content"]
        if content not in text and content.strip() not in text and not _reads(text, content):
            # What is left out once turns follow, such as Qwen3's earlier thinking, was written before.
            upto = chat_template.render(tokenizer, messages[: turn + 1], tools=tools, settings=settings)
            if not _reads(upto, content):
                return Coverage(_lost(f"all of {_whose(message)} turn"))
    return found


def _lost(what: str) -> str:
    return f"the chat template does not write {what}"


def _reads(text: str, content: str) -> bool:
    """Whether the words of a content are in a text, in their order: a template may change the space between them."""
    at = 0
    for word in content.split():
        at = text.find(word, at)
        if at < 0:
            return json.dumps(content, ensure_ascii=False)[1:-1] in text
        at += len(word)
    return True


def _whose(message: Message) -> str:
    return "the system's" if message["role"] == "developer" else f"the {message['role']}'s"


def _shape(messages: list[Message], tools: Tools, settings: Settings) -> Any:
    if not tools and not settings and all(len(message) == 2 for message in messages):
        return "".join(message["role"][0] for message in messages)
    parts = []
    for message in messages:
        calls = [(bool(call["function"]["arguments"]), "id" in call) for call in message.get("tool_calls", [])]
        parts.append((message["role"], bool(message["content"]), tuple(sorted(message)), tuple(calls)))
    return tuple(parts), len(tools), json.dumps(settings, sort_keys=True, default=str)


class _Marker:
    """Words that occur nowhere else: letters and digits, and as long as the ids that Mistral's templates ask for."""

    def __init__(self) -> None:
        self._count = 0
        self._ids: dict[str, str] = {}
        self.what: list[tuple[str, str, int]] = []

    def word(self, what: str, turn: int = -1) -> str:
        """A new word for a part of a turn."""
        self._count += 1
        word = f"qz{self._count:05}xk"
        self.what.append((word, what, turn))
        return word

    def id(self, own: str, what: str, turn: int) -> str:
        """The word for an id: the same one wherever the conversation has this id, because templates compare them."""
        if own not in self._ids:
            self._ids[own] = self.word(what, turn)
        self.what.append((self._ids[own], what, turn))
        return self._ids[own]


REWRITTEN = ("reasoning", "the assistant's turn")
"""Parts that a template may write otherwise once turns follow."""
LINKS = ("name", "tool_call_id", "tool_calls.id")


def _of_shape(tokenizer: Any, messages: list[Message], tools: Tools, settings: Settings) -> Coverage | None:
    """What is not written of any conversation of these parts; None: the template does not take such words."""
    marker = _Marker()
    marked = [_marked(message, turn, marker) for turn, message in enumerate(messages)]
    schemas = [_marked_tool(tool, marker) for tool in tools]
    try:
        text = chat_template.render(tokenizer, marked, tools=schemas, settings=settings)
    except InputError:
        return None
    missing = [(what, turn) for word, what, turn in marker.what if word not in text]
    links = tuple(sorted({what for what, _ in missing if what in LINKS}))
    words = {(what, turn): word for word, what, turn in marker.what}
    for what, turn in missing:
        if what in REWRITTEN:
            # Thoughts before an earlier answer are left out on purpose: were they written while it was the last? An
            # earlier answer in other words is refused where its place in the text is looked for.
            upto = chat_template.render(tokenizer, marked[: turn + 1], tools=schemas, settings=settings)
            if words[what, turn] in upto:
                continue
        if what not in LINKS:
            return Coverage(_lost(what), links)
    return Coverage("", links)


def _marked(message: Message, turn: int, marker: _Marker) -> Message:
    made = dict(message)
    if message["content"]:
        made["content"] = marker.word(f"{_whose(message)} turn", turn)
    if "reasoning_content" in message:
        made["reasoning_content"] = marker.word("reasoning", turn)
    if "name" in message:
        made["name"] = marker.word("name", turn)
    if "tool_call_id" in message:
        made["tool_call_id"] = marker.id(message["tool_call_id"], "tool_call_id", turn)
    if "tool_calls" in message:
        made["tool_calls"] = [_marked_call(call, turn, marker) for call in message["tool_calls"]]
    return made


def _marked_call(call: dict[str, Any], turn: int, marker: _Marker) -> dict[str, Any]:
    function: dict[str, Any] = {"name": marker.word("tool calls", turn), "arguments": {}}
    if call["function"]["arguments"]:
        what = "tool calls' arguments"
        function["arguments"] = {marker.word(what, turn): marker.word(what, turn)}
    return (
        call | {"function": function} | ({"id": marker.id(call["id"], "tool_calls.id", turn)} if "id" in call else {})
    )


def _marked_tool(tool: dict[str, Any], marker: _Marker) -> dict[str, Any]:
    inner = tool.get("function")
    if isinstance(inner, dict) and "name" in inner:
        return tool | {"function": inner | {"name": marker.word("tools")}}
    return tool | {"name": marker.word("tools")} if "name" in tool else tool
