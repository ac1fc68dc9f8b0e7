"""Conversations out of rows: what the columns of a row mean."""

import collections
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.data.chat_template import Message, Tools

Row = dict[str, Any]

COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""By form, the columns that it is known by; where a row has those of several forms, the first counts."""
ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


class Conversation(NamedTuple):
    """What a row holds: a conversation, or plain text where there are no messages."""

    messages: list[Message]
    tools: Tools
    text: str
    group: str
    slice: str


def form_of(row: Row) -> str | None:
    """The form of one row by its columns, or None."""
    for form, columns in COLUMNS.items():
        if all(row.get(column) is not None for column in columns):
            return form
    return None


def most_common_form(rows: Iterable[Row]) -> str:
    """The form of most of these rows; a file has one. Empty where no row is of any."""
    counts = collections.Counter(form for form in map(form_of, rows) if form)
    return counts.most_common(1)[0][0] if counts else ""


def renamed(row: Row, columns: Mapping[Any, str]) -> Row:
    """The row with the user's column names replaced by those known here.

    Raises:
        ValueError: the row has no such column.
    """
    for ours, theirs in columns.items():
        if theirs not in row:
            raise ValueError(f"no column {theirs}, which columns names for {ours}")
    return row | {ours: row[theirs] for ours, theirs in columns.items()} if columns else row


def conversation(row: Row, form: str) -> Conversation:
    """The conversation a row of this form stands for.

    Raises:
        ValueError: why the row cannot be used; quotes nothing of it.
    """
    if not form or any(row.get(column) is None for column in COLUMNS[form]):
        missing = ", ".join(column for column in COLUMNS.get(form, ()) if row.get(column) is None)
        if form and (other := form_of(row)):
            raise ValueError(f"of form {other} in a file of form {form}")
        raise ValueError(f"no {missing}" if missing else "of no known form; name its columns in columns")
    group, part = _label(row, "group"), _label(row, "slice")
    if form == "text":
        return Conversation([], [], _text(row["text"], "text"), group, part)
    messages = [_message(turn) for turn in _FORMS[form](row)]
    if form != "messages" and row.get("system"):
        messages.insert(0, _message({"role": "system", "content": row["system"]}))
    _check_order(messages)
    return Conversation(messages, _tools(row.get("tools")), "", group, part)


def encode(tokenizer: Any, conversation: Conversation, max_length: int, last_only: bool) -> chat_template.Encoded:
    """Token ids and labels of what a row holds: of its messages, or of its plain text.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        conversation: what the row holds.
        max_length: tokens; what is longer is cut at the end.
        last_only: whether only the last answer is supervised.

    Raises:
        InputError: the chat template cannot be used on it.
    """
    if not conversation.messages:
        return chat_template.encode_text(tokenizer, conversation.text, max_length)
    return chat_template.encode(
        tokenizer, conversation.messages, max_length, tools=conversation.tools, last_only=last_only
    )


def _label(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, dict | list):
        raise ValueError(f"{column} is not text or a number")
    return "" if value is None else str(value)


def _text(value: Any, what: str) -> str:
    if isinstance(value, list):  # parts, as OpenAI's chat format allows; only text can be trained on
        texts: list[Any] = [part.get("text") for part in value if isinstance(part, dict) and part.get("type") == "text"]
        if len(texts) < len(value) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{what} has a part that is not text")
        value = "".join(texts)
    if not isinstance(value, str):
        raise ValueError(f"{what} is not text")
    if not value or value.isspace():
        raise ValueError(f"{what} is empty")
    return value


def _from_messages(row: Row) -> list[Any]:
    messages = row["messages"]
    return _turns(_parsed(messages, "messages") if isinstance(messages, str) else messages)


def _turns(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is not a list of turns")
    return messages


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise ValueError("a turn is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        known = isinstance(role, str) and re.fullmatch(r"\w{1,20}", role)
        raise ValueError(f"unknown role {role}" if known else "unknown role")
    if len(message) == 2 and type(content) is str and content and not content.isspace():
        return {"role": role, "content": content}
    calls = message.get("tool_calls")
    if calls and role != "assistant":
        raise ValueError(f"the {role} calls tools")
    turn: Message = {"role": role}
    if content or not calls:
        turn["content"] = _text(content, f"the {role}'s content")
    if calls:
        turn["tool_calls"] = [_call(call) for call in _turns(calls)]
        turn.setdefault("content", "")
    optional = ("name", "tool_call_id", "reasoning_content")
    return turn | {name: message[name] for name in optional if isinstance(message.get(name), str)}


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError("a tool call names no function")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI's format has a string of JSON; templates write the object.
        arguments = _parsed(arguments or "{}", "a tool call's arguments")
    if not isinstance(arguments, dict | None):
        raise ValueError("a tool call's arguments are not an object")
    # Parquet gives every struct all keys, null where there was none.
    arguments = {key: value for key, value in (arguments or {}).items() if value is not None}
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return made | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def _tools(tools: Any) -> Tools:
    if isinstance(tools, str):
        tools = _parsed(tools, "tools") if tools.strip() else []
    tools = tools or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools is not a list of objects")
    return tools


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"{what} is text, but not JSON") from None


def _from_sharegpt(row: Row) -> list[Any]:
    return [_sharegpt_turn(turn) for turn in _turns(row["conversations"])]


def _sharegpt_turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if turn["from"] == "function_call":
        calls = _parsed(_text(turn.get("value"), "a function_call"), "a function_call")
        return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls]}
    return {"role": role or turn["from"], "content": turn.get("value")}


def _from_prompt_completion(row: Row) -> list[Any]:
    return _as_turns(row["prompt"], "user") + _as_turns(row["completion"], "assistant")


def _as_turns(value: Any, role: str) -> list[Any]:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return value
    return [{"role": role, "content": value}]


def _from_alpaca(row: Row) -> list[Any]:
    question = _text(row["instruction"], "instruction")
    if row.get("input") not in (None, ""):
        question = f"{question}\n\n{_text(row['input'], 'input')}"
    turns: list[Any] = []
    for past in row.get("history") or []:
        if not isinstance(past, list) or len(past) != 2:
            raise ValueError("history is not a list of pairs")
        turns += [{"role": "user", "content": past[0]}, {"role": "assistant", "content": past[1]}]
    return [*turns, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


def _check_order(messages: list[Message]) -> None:
    """Turns as serving will see them: the assistant answers someone, and only tools speak twice in a row."""
    previous = ""
    for message in messages:
        role = message["role"]
        if role == previous and role != "tool":
            raise ValueError(f"two {role} turns in a row")
        if role == "assistant" and previous in ("", "system", "developer"):
            raise ValueError("the assistant speaks first, before any question")
        previous = role
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no assistant turn")


_FORMS = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}
