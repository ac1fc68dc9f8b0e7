"""Conversations out of rows: what the columns of a row mean."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qlora_pipelines.components.core.data import chat_template, row_keys, template_coverage, turn_order, turns
from qlora_pipelines.components.core.data.chat_template import Message, Tools
from qlora_pipelines.components.core.data.row_keys import Reading
from qlora_pipelines.components.core.data.turns import WEIGHT, LeftOut, RowError
from qlora_pipelines.components.core.errors import InputError

Row = dict[str, Any]

COLUMNS = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""By form, the columns that it is known by; where a row has those of several forms, the first counts."""
PAIR = ("chosen", "rejected")
"""Columns of a preference pair."""
JOINED = (
    "a token spans the end of the prompt and the start of the answer: a server that tokenises the prompt alone gives"
    " the model other tokens than those it learns from"
)
"""The note on a row of which `chat_template.Encoded.joined` is true."""
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
    """What a row holds: a conversation, or plain text where there are no messages.

    `settings` are the row's own variables of the chat template. `notes` say what of the row is not used as one might
    expect.
    """

    messages: list[Message]
    tools: Tools
    text: str
    group: str
    slice: str
    settings: dict[str, Any] = {}  # noqa: RUF012, nobody writes to it
    notes: tuple[str, ...] = ()


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
        RowError: the row has no such column.
    """
    for ours, theirs in columns.items():
        if theirs not in row:
            raise RowError(f"no column {theirs}, which columns names for {ours}", theirs)
    if not columns:
        return row
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return others | {ours: row[theirs] for ours, theirs in columns.items()}


def conversation(row: Row, form: str, reading: Reading = Reading()) -> Conversation:  # noqa: B008, it is immutable
    """The conversation a row of this form stands for.

    Raises:
        LeftOut: the row says that it is not to be trained on.
        RowError: why the row cannot be used; quotes nothing of it.
    """
    if not form or any(row.get(column) is None for column in COLUMNS[form]):
        raise _formless(row, form)
    group, part = row_keys.label(row, "group"), row_keys.label(row, "slice")
    settings, notes = row_keys.others(row, form, COLUMNS[form], reading)
    if form == "text":
        return Conversation([], [], turns.text(row["text"], "text", "text"), group, part, settings, tuple(notes))
    column, given = COLUMNS[form][0], _FORMS[form](row)
    messages = []
    for place, turn in enumerate(given):
        try:
            message, told = turns.message(turn)
        except RowError as error:
            raise RowError(str(error), f"{column}[{place}]{'.' if error.key else ''}{error.key}") from None
        messages.append(message)
        notes += [f"{column}.{note}" for note in told]
    messages = turn_order.checked(turn_order.with_system(row, messages), reading.consecutive_turns, column)
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        chosen = (
            ": its answers are in chosen and rejected, and pairs are not trained on; keep the chosen answer as a turn"
        )
        raise RowError(f"no assistant turn{chosen if 'chosen' in row else ''}", column)
    if all(WEIGHT in message for message in answers):
        raise LeftOut("every answer is marked as not trained", column)
    schemas = next(filter(None, map(turns.tools, filter(None, (row.get("tools"), row.get("functions"))))), [])
    return Conversation(messages, schemas, "", group, part, settings, tuple(dict.fromkeys(notes)))


def encode(tokenizer: Any, conversation: Conversation, max_length: int, last_only: bool) -> chat_template.Encoded:
    """Token ids and labels of what a row holds: of its messages, or of its plain text.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        conversation: what the row holds.
        max_length: tokens; what is longer is cut at the end.
        last_only: whether only the last answer is supervised.

    Raises:
        InputError: the chat template cannot be used on it, or does not write all of it.
    """
    messages, tools, text, *_ = conversation
    if not messages:
        return chat_template.encode_text(tokenizer, text, max_length)
    settings = conversation.settings
    if lost := template_coverage.check(tokenizer, messages, tools, settings).lost:
        raise InputError(lost)
    return chat_template.encode(tokenizer, messages, max_length, tools=tools, settings=settings, last_only=last_only)


def notes(tokenizer: Any, conversation: Conversation, joined: bool = False) -> list[str]:
    """What to tell about a row that can be used: what of it is not used as one might expect.

    Args:
        tokenizer: has the chat template.
        conversation: what the row holds.
        joined: whether a token spans the end of a prompt and the start of its answer.
    """
    found = [*conversation.notes, *[JOINED] * joined]
    if conversation.messages and chat_template.reads_clock(tokenizer):
        found.append(f"the chat template prints a date, which is always {chat_template.TODAY:%Y-%m-%d} here")
    if any(len(message) > 2 for message in conversation.messages):
        covered = template_coverage.check(tokenizer, conversation.messages, conversation.tools, conversation.settings)
        found += [f"{key} is not written by the chat template" for key in covered.links]
    return found


def _formless(row: Row, form: str) -> RowError:
    missing = ", ".join(column for column in COLUMNS.get(form, ()) if row.get(column) is None)
    if form and (other := form_of(row)):
        return RowError(f"of form {other} in a file of form {form}")
    if all(column in row for column in PAIR):
        return RowError(
            "a pair of answers, chosen and rejected, which is not trained on: to train on the chosen ones, set columns"
            ' to {"completion": "chosen"}, or {"messages": "chosen"} where they are conversations',
            "chosen",
        )
    return RowError(f"no {missing}" if missing else "of no known form; name its columns in columns", missing)


def _from_messages(row: Row) -> list[Any]:
    messages = row["messages"]
    return _turns(turns.parsed(messages, "messages", "messages") if isinstance(messages, str) else messages, "messages")


def _turns(messages: Any, column: str) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise RowError(f"{column} is not a list of turns", column)
    return messages


def _from_sharegpt(row: Row) -> list[Any]:
    column = "conversations"
    given = row[column]
    given = turns.parsed(given, column, column) if isinstance(given, str) else given
    return [_sharegpt_turn(turn) for turn in _turns(given, column)]


def _sharegpt_turn(turn: Any) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = SHAREGPT_ROLES.get(turn["from"]) if isinstance(turn["from"], str) else None
    if turn["from"] == "function_call":
        value = turns.text(turn.get("value"), "a function_call", "value")
        return others | {"role": role, "tool_calls": turns.parsed(value, "a function_call", "value")}
    return others | {"role": role or turn["from"], "content": turn.get("value")}


def _from_prompt_completion(row: Row) -> list[Any]:
    return _as_turns(row["prompt"], "user") + _as_turns(row["completion"], "assistant")


def _as_turns(value: Any, role: str) -> list[Any]:
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return value
    return [{"role": role, "content": value}]


def _from_alpaca(row: Row) -> list[Any]:
    question = turns.text(row["instruction"], "instruction", "instruction")
    if row.get("input") not in (None, ""):
        question = f"{question}\n\n{turns.text(row['input'], 'input', 'input')}"
    past: list[Any] = []
    for pair in row.get("history") or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowError("history is not a list of pairs", "history")
        past += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*past, {"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]


_FORMS = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "prompt_completion": _from_prompt_completion,
    "alpaca": _from_alpaca,
}
