"""The order of a conversation's turns: as serving will see them."""

from typing import Any

from qlora_pipelines.components.core.data import turns
from qlora_pipelines.components.core.data.turns import Message, RowError


def with_system(row: dict[str, Any], messages: list[Message]) -> list[Message]:
    """The messages with the column `system` as their first turn.

    Raises:
        RowError: they have another one already.
    """
    if turns.empty(row.get("system")):
        return messages
    system = turns.message({"role": "system", "content": row["system"]})[0]
    if messages and messages[0]["role"] in ("system", "developer"):
        if messages[0]["content"].strip() != system["content"].strip():
            raise RowError("the system's turn and the column system are not the same", "system")
        return messages
    return [system, *messages]


def checked(messages: list[Message], consecutive: str, column: str) -> list[Message]:
    """Turns in which the assistant answers someone, and only tools speak twice in a row.

    Args:
        messages: of a row.
        consecutive: `reject` a row with others, `join` turns of one role, or `keep` them as they are.
        column: that the turns come from, for the message.

    Raises:
        RowError: the turns are in another order.
    """
    kept: list[Message] = []
    for message in messages:
        role, previous = message["role"], kept[-1]["role"] if kept else ""
        if role == previous != "tool" and consecutive != "keep":
            if consecutive == "reject":
                raise RowError(f"two {role} turns in a row; consecutive_turns can join or keep them", column)
            kept[-1] = _joined(kept[-1], message)
            continue
        if role == "assistant" and previous in ("", "system", "developer") and consecutive != "keep":
            raise RowError("the assistant speaks first, before any question; consecutive_turns can keep it", column)
        kept.append(message)
    return kept


def _joined(one: Message, other: Message) -> Message:
    """Two turns of one role as one: their texts with an empty line between them, the calls of tools together."""
    differ = [key for key in one.keys() | other.keys() - {"tool_calls"} if one.get(key) != other.get(key)]
    if wrong := sorted({*differ} - {"content", "tool_calls"}):
        raise RowError(f"two {one['role']} turns in a row cannot be joined: their {wrong[0]} differs", wrong[0])
    calls = [*one.get("tool_calls", []), *other.get("tool_calls", [])]
    content = "\n\n".join(filter(None, (one["content"], other["content"])))
    return one | {"content": content} | ({"tool_calls": calls} if calls else {})
