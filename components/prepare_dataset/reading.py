"""Rows out of JSON and JSONL files, and conversations out of rows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from components.core import storage
from components.core.chat import Message
from components.core.errors import InputError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json")
ROLES = ("system", "user", "assistant")


def rows(uri: str) -> Iterator[tuple[int, Row]]:
    """The rows of one file, each with its number from 1 (JSONL: the line; JSON: the place in the list).

    Raises:
        InputError: not UTF-8, not JSON, or of a kind that is not read; names file and line.
    """
    suffix = Path(uri).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"data {uri}: files of kind {suffix or '(none)'} are not read; give .json or .jsonl")
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"data {uri}: not UTF-8 at byte {error.start}") from None
    if suffix == ".json":
        found = _json(text, uri, 1)
        if not isinstance(found, list):
            raise InputError(f"data {uri}: a .json file must hold one list of rows; one row a line is .jsonl")
        yield from ((number, _object(row, uri, number)) for number, row in enumerate(found, 1))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, _object(_json(line, uri, number), uri, number)


def _json(text: str, uri: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"data {uri}: not JSON at line {line + error.lineno - 1}: {error.msg}") from None


def _object(row: Any, uri: str, line: int) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"data {uri}: line {line} is not a JSON object with columns, but {type(row).__name__}")
    return row


def conversation(row: Row) -> list[Message]:
    """The conversation a row stands for.

    Three forms are known by their columns: `messages`; `prompt` and `completion`; `instruction`, `input` and
    `output` (alpaca).

    Raises:
        ValueError: why the row cannot be used.
    """
    if "messages" in row:
        messages = row["messages"]
    elif "prompt" in row and "completion" in row:
        messages = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
    elif "instruction" in row and "output" in row:
        question = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
    else:
        raise ValueError("no messages, no prompt and completion, no instruction and output")
    return [_message(message) for message in _list(messages)]


def _list(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages is not a list of turns")
    return messages


def _message(message: Any) -> Message:
    if not isinstance(message, dict):
        raise ValueError("a turn is not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}")
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"the {role}'s content is not text, or empty")
    return {"role": role, "content": content}
