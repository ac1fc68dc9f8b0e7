"""The columns of a row that hold no turns: each is used, known to be harmless, or named."""

import functools
from typing import Any, NamedTuple

from qlora_pipelines.components.core.data import turns
from qlora_pipelines.components.core.data.turns import LeftOut, Notes, RowError

Row = dict[str, Any]

READ = {"group", "slice", "chat_template_kwargs"}
"""Columns that are read in every form; `MORE` has those of one form, and `CHAT` those of all but plain text."""
CHAT = {"system", "tools", "functions"}
MORE = {"alpaca": {"input", "history"}}
HARMLESS = turns.HARMLESS | {
    "uuid", "conversation_id", "prompt_id", "row_id", "source", "dataset", "split", "url", "lang", "language",
    "category", "metadata", "model", "tool_choice", "parallel_tool_calls", "__index_level_0__",
}  # fmt: skip
"""Columns that say nothing about what is trained."""
JUDGEMENTS = ("label", "kto_tag")
"""Whether an answer is a good one: of TRL's unpaired preferences, of LLaMA-Factory."""
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "conversation"}


class Reading(NamedTuple):
    """How rows are read.

    Attributes:
        consecutive_turns: `reject`, `join` or `keep` turns of one role that follow one another.
        variables: names that the chat template reads, besides messages and tools: a row's columns of these names are
            handed to it.
        extra: columns that are handed on to the scores.
    """

    consecutive_turns: str = "reject"
    variables: frozenset[str] = frozenset()
    extra: frozenset[str] = frozenset()


def label(row: Row, column: str) -> str:
    """A row's group or slice, which is text or a number.

    Raises:
        RowError: it is neither.
    """
    value = row.get(column)
    if isinstance(value, dict | list):
        raise RowError(f"{column} is not text or a number", column)
    return "" if value is None else str(value)


def others(row: Row, form: str, columns: tuple[str, ...], reading: Reading) -> tuple[dict[str, Any], Notes]:
    """The columns that hold no turns: the chat template's variables, and notes on what is not read.

    Args:
        row: as it was read, without empty columns or with them.
        form: of the row.
        columns: that this form is known by.
        reading: how rows are read.

    Raises:
        LeftOut: one says that the row is not to be trained on.
        RowError: one says what cannot be done.
    """
    given = {key: row[key] for key in row.keys() - _known(form, columns) if not turns.empty(row[key])}
    if not given and "chat_template_kwargs" not in row:
        return {}, []
    given = {key: given[key] for key in row if key in given}  # in the row's order: the notes are
    settings, notes = _settings(row, reading)
    for key in reading.variables & given.keys():
        settings[key] = given.pop(key)
    for key in JUDGEMENTS:
        if _judges(given.get(key), form) and not turns.flag(given.pop(key), key):
            raise LeftOut(f"{key} is false: the answer is marked as bad", key)
    found = turns.mark(given, "row")
    if found and not found[1]:
        raise LeftOut(f"{found[0]} is 0: the row is marked as not trained", found[0])
    return settings, notes + [turns.unread(key) for key in given if key not in HARMLESS | reading.extra]


def _judges(value: Any, form: str) -> bool:
    """Whether a value says if an answer is good; a number with plain text, and any other text, is a class' name."""
    if isinstance(value, bool) or str(value).strip().lower() in ("true", "false"):
        return True
    return form != "text" and isinstance(value, int | float) and value in (0, 1)


@functools.cache
def _known(form: str, columns: tuple[str, ...]) -> frozenset[str]:
    return frozenset({*columns, *READ, *MORE.get(form, ()), *(CHAT if form != "text" else ())})


def _settings(row: Row, reading: Reading) -> tuple[dict[str, Any], Notes]:
    key = "chat_template_kwargs"
    value = row.get(key)
    value = turns.parsed(value, key, key) if isinstance(value, str) and value.strip() else value or {}
    if not isinstance(value, dict):
        raise RowError(f"{key} is not an object", key)
    if wrong := RESERVED & value.keys():
        raise RowError(f"{key} sets {min(wrong)}, which comes from the row itself", key)
    value = {name: setting for name, setting in value.items() if setting is not None}
    return value, [turns.unread(f"{key}.{name}") for name in value.keys() - reading.variables]
