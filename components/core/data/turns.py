"""One turn of a row as the message that a chat template gets: every key is used, or named, or the row is refused."""

import json
import re
from collections.abc import Iterator
from typing import Any

Message = dict[str, Any]
Notes = list[str]
"""What a row holds that is not used as one might expect; for the plan and the data report, by row."""

ROLES = ("system", "developer", "user", "assistant", "tool")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of an assistant's thoughts before its answer: of DeepSeek and Qwen, of vLLM, of gpt-oss."""
MARKS = ("weight", "loss_weight", "loss_mask", "loss", "train", "trained", "trainable", "training")
"""Whether a turn is trained, or a row: of OpenAI and Mistral, LLaMA-Factory, axolotl, ms-swift."""
WEIGHTS = {"weight", "loss_weight"}
FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
PARTIAL_MARKS = ("train_detail", "training_detail")
"""Axolotl's marks of what is trained within a turn."""
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
HARMLESS = {"id", "index", "idx", "timestamp", "created", "created_at"}
"""Keys of a turn or a call that say nothing about what is trained."""
WEIGHT = "weight"
"""The key under which a message keeps that it is not trained: it is 0 then, and absent otherwise."""


class RowError(ValueError):
    """Why a row cannot be used. It quotes nothing of the row.

    Attributes:
        key: where in the row it is, such as `messages[2].content`; '': the row as a whole.
    """

    def __init__(self, reason: str, key: str = "") -> None:
        """See the class."""
        super().__init__(reason)
        self.key = key


class LeftOut(RowError):
    """The row itself says that it is not to be trained on."""


def message(turn: Any) -> tuple[Message, Notes]:
    """The message that a turn stands for, and what to tell about it.

    Raises:
        RowError: why it is none.
    """
    if not isinstance(turn, dict):
        raise RowError("a turn is not an object with role and content")
    role, content = turn.get("role"), turn.get("content")
    role = "tool" if role == "function" else role
    if role not in ROLES:
        known = isinstance(role, str) and re.fullmatch(r"\w{1,20}", role)
        raise RowError(f"unknown role {role}" if known else "unknown role", "role")
    if len(turn) == 2 and type(content) is str and content and not content.isspace():
        return {"role": role, "content": content}, []
    given = {key: value for key, value in turn.items() if not empty(value) and key not in ("role", "content")}
    content, thoughts, part_calls = _parts(content, role)
    calls = _calls(given.pop("tool_calls", [])) + _calls([given.pop("function_call", None)]) + part_calls
    if calls and role != "assistant":
        raise RowError(f"the {role} calls tools", "tool_calls")
    made: Message = {"role": role}
    if not empty(content) or not calls:
        made["content"] = text(content, f"the {role}'s content", "content")
    notes: Notes = []
    if calls:
        made["tool_calls"] = [_call(call, notes) for call in calls]
        made.setdefault("content", "")
    for key in ("name", "tool_call_id"):
        if isinstance(given.get(key), str | int):
            made[key] = str(given.pop(key))
    if role == "assistant":
        thoughts += [text(given.pop(key), key, key) for key in REASONING if key in given]
        if len({thought.strip() for thought in thoughts}) > 1:
            raise RowError("the assistant's reasoning is given twice", "reasoning_content")
        if thoughts:
            made["reasoning_content"] = thoughts[0]
    if _trained(given, role, notes) is False:
        made[WEIGHT] = 0
    return made, notes + [unread(key) for key in given if key not in HARMLESS]


def unread(key: str) -> str:
    """The note on a key that nothing reads."""
    return f"{key} is not read"


def empty(value: Any) -> bool:
    """Whether a value says nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, str | list | dict) and not value)


def mark(given: dict[str, Any], where: str) -> tuple[str, bool] | None:
    """Takes the marks out of a turn's or a row's keys: the name of one that is there, and whether it is trained.

    Args:
        given: what is there, without what is empty.
        where: `turn` or `row`, for the message.

    Raises:
        RowError: a mark is neither 0 nor 1, or two of them do not agree.
    """
    for key in PARTIAL_MARKS:
        if key in given:
            raise RowError(f"{key} marks parts of a {where}: only a whole turn or row can be left out", key)
    for key in MEDIA:
        if key in given:
            raise RowError(f"the {where} has {key}: only text is trained on", key)
    found = {}
    for key in MARKS:
        # A row may have a column such as `loss` that is a figure; a number called weight is always a wish.
        if key in given and (where == "turn" or key in WEIGHTS or is_flag(given[key])):
            found[key] = flag(given.pop(key), key)
    if len(set(found.values())) > 1:
        raise RowError(f"{' and '.join(found)} do not agree on whether the {where} is trained", next(iter(found)))
    return next(iter(found.items()), None)


def flag(value: Any, key: str) -> bool:
    """A mark as true or false.

    Raises:
        RowError: it is neither.
    """
    if is_flag(value):
        return FLAGS[str(value).strip().lower()]
    raise RowError(f"{key} is neither 0 nor 1, nor true or false: a turn or row is trained whole or not at all", key)


def is_flag(value: Any) -> bool:
    """Whether a value is true or false, in one of the ways in which files have it."""
    return isinstance(value, bool | int | float | str) and str(value).strip().lower() in FLAGS


def text(value: Any, what: str, key: str) -> str:
    """A text that has words.

    Raises:
        RowError: it is none, or empty.
    """
    if not isinstance(value, str):
        raise RowError(f"{what} is not text", key)
    if not value or value.isspace():
        raise RowError(f"{what} is empty", key)
    return value


def parsed(value: str, what: str, key: str) -> Any:
    """What JSON text holds.

    Raises:
        RowError: it is not JSON.
    """
    try:
        return json.loads(value)
    except (json.JSONDecodeError, RecursionError):
        raise RowError(f"{what} is text, but not JSON", key) from None


def tools(value: Any) -> list[dict[str, Any]]:
    """The tools of a row, as schemas or JSON text; a bare function is put into OpenAI's frame, as serving does.

    Raises:
        RowError: it is no list of objects.
    """
    if isinstance(value, str):
        value = parsed(value, "tools", "tools") if value.strip() else []
    value = value or []
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowError("tools is not a list of objects", "tools")
    framed = "function", "type"
    return [
        tool if any(key in tool for key in framed) or "name" not in tool else {"type": "function", "function": tool}
        for tool in value
    ]


def _trained(given: dict[str, Any], role: str, notes: Notes) -> bool | None:
    """Whether the turn is marked as trained or not; None: it has no mark."""
    found = mark(given, "turn")
    if found is None:
        return None
    key, trained = found
    if role != "assistant":
        # A weight of 1 on every turn is a default that some tools write; a mark that only this turn has is a wish.
        if trained and key not in WEIGHTS:
            raise RowError(f"{key} marks the {role}'s turn as trained: only the assistant's turns are", key)
        return None
    if not trained:
        notes.append(f"{key} marks turns that are not trained")
    return trained


def _parts(content: Any, role: str) -> tuple[Any, list[str], list[Any]]:
    """A turn's content as text, thoughts and calls of tools; what is no list of typed parts stays as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) and "type" in part for part in content):
        if role == "tool" and not isinstance(content, str | None):
            content = json.dumps(content, ensure_ascii=False)  # a result that is data
        return content, [], []
    texts, thoughts, calls = [], [], []
    for part in content:
        kind = part["type"]
        value = next((part[key] for key in ("value", kind, "text") if not empty(part.get(key))), None)
        if kind == "text":
            texts.append(part.get("text", part.get("value")))
        elif kind in (*REASONING, "think"):
            thoughts.append(text(value, "a part's reasoning", "content"))
        elif kind in ("tool_call", "tool_use", "function"):
            value = parsed(value, "a part's tool call", "content") if isinstance(value, str) else value
            calls += value if isinstance(value, list) else [part if value is None else value]
        else:
            raise RowError("the content has a part that is not text", "content")
    if not all(isinstance(piece, str) for piece in texts):
        raise RowError("the content has a part that is not text", "content")
    return "".join(texts), ["".join(thoughts)] if thoughts else [], calls


def _calls(value: Any) -> list[Any]:
    if isinstance(value, str):
        value = parsed(value, "tool_calls", "tool_calls")
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowError("tool_calls is not a list", "tool_calls")
    return [call for call in value if call is not None]


def _call(call: Any, notes: Notes) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("a tool call names no function", "tool_calls")
    arguments = next((function[key] for key in ("arguments", "parameters", "input") if key in function), None)
    if isinstance(arguments, str):
        # OpenAI's format has a string of JSON; templates write the object.
        arguments = parsed(arguments or "{}", "a tool call's arguments", "tool_calls")
    if not isinstance(arguments, dict | None):
        raise RowError("a tool call's arguments are not an object", "tool_calls")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    if isinstance(call.get("id"), str | int):
        made["id"] = str(call["id"])
    notes += [unread(f"tool_calls.{key}") for key in _others(call, function)]
    return made


def _others(call: dict[str, Any], function: dict[str, Any]) -> Iterator[str]:
    known = {"type", "function", "name", "arguments", "parameters", "input", *HARMLESS}
    for part in (call, function) if function is not call else (call,):
        yield from (key for key, value in part.items() if key not in known and not empty(value))
