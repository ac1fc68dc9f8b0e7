"""Every key of a row and of a turn is used, harmless, or named; one that says what is trained is obeyed."""

from typing import Any

import pytest

from qlora_pipelines.components.core.data import formats
from qlora_pipelines.components.core.data.formats import Conversation
from qlora_pipelines.components.core.data.row_keys import Reading
from qlora_pipelines.components.core.data.turns import LeftOut, RowError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
AGAIN, LAST = {"role": "user", "content": "no"}, {"role": "assistant", "content": "b"}
BAD_MARKS = [("weight", 0), ("weight", 0.0), ("weight", "0"), ("train", False), ("loss", False), ("loss_mask", 0),
             ("loss_weight", 0.0), ("trainable", False), ("training", "false")]  # fmt: skip


def read(row: formats.Row, reading: Reading = Reading()) -> Conversation:  # noqa: B008, it is immutable
    return formats.conversation(row, formats.most_common_form([row]), reading)


def sharegpt(turn: dict[str, Any]) -> dict[str, Any]:
    return {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]}


@pytest.mark.parametrize(("key", "value"), BAD_MARKS)
@pytest.mark.parametrize("form", ["messages", "conversations"])
def test_a_turn_that_is_marked_is_not_trained(form: str, key: str, value: Any) -> None:
    turns = [USER, ANSWER, AGAIN, LAST]
    if form == "conversations":
        turns = [sharegpt(turn) for turn in turns]
    turns[1] = turns[1] | {key: value}
    found = read({form: turns})
    assert [message.get("weight") for message in found.messages] == [None, 0, None, None]
    assert found.notes == (f"{form}.{key} marks turns that are not trained",)


@pytest.mark.parametrize(("key", "value"), [("weight", 1), ("train", True), ("loss", None), ("loss_mask", 1)])
def test_a_turn_that_is_marked_as_trained_is_as_any(key: str, value: Any) -> None:
    assert read({"messages": [USER, ANSWER | {key: value}]}) == read({"messages": [USER, ANSWER]})


@pytest.mark.parametrize(
    ("row", "reason", "key"),
    [
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "weight is neither 0 nor 1", "messages[1].weight"),
        ({"messages": [USER, ANSWER | {"weight": 0, "train": True}]}, "do not agree", "messages[1].weight"),
        ({"messages": [USER | {"train": True}, ANSWER]}, "marks the user's turn as trained", "messages[0].train"),
        ({"messages": [USER, ANSWER | {"train_detail": [{"begin_offset": 0}]}]}, "marks parts of a turn",
         "messages[1].train_detail"),
        ({"messages": [USER, ANSWER], "weight": 0.3}, "weight is neither 0 nor 1", "weight"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "the row has images: only text", "images"),
        ({"messages": [USER | {"audio": {"id": "1"}}, ANSWER]}, "the turn has audio", "messages[0].audio"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, 'columns to {"completion": "chosen"}', "chosen"),
        ({"conversations": [sharegpt(USER)], "chosen": sharegpt(ANSWER), "rejected": {}}, "pairs are not trained on",
         "conversations"),
        ({"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system": "t"}, "are not the same", "system"),
        ({"messages": [USER, ANSWER | {"thinking": "t", "reasoning": "u"}]}, "reasoning is given twice",
         "messages[1].reasoning_content"),
        ({"messages": [USER, ANSWER | {"reasoning": ["t"]}]}, "reasoning is not text", "messages[1].reasoning"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": {"messages": []}}, "comes from the row itself",
         "chat_template_kwargs"),
        ({"messages": [USER, ANSWER], "chat_template_kwargs": "x"}, "is text, but not JSON", "chat_template_kwargs"),
    ],
)  # fmt: skip
def test_what_cannot_be_obeyed_stops_the_row_and_is_named(row: formats.Row, reason: str, key: str) -> None:
    with pytest.raises(RowError) as error:
        formats.conversation(row, formats.most_common_form([row]))
    assert reason in str(error.value) and error.value.key == key and not isinstance(error.value, LeftOut)


@pytest.mark.parametrize(
    "row",
    [
        *({"prompt": "q", "completion": "a", "label": bad} for bad in (False, 0, "False", "false")),
        {"text": "bad", "label": False},
        {"conversations": [sharegpt(USER), sharegpt(ANSWER)], "kto_tag": False},
        {"instruction": "q", "output": "a", "weight": 0},
        {"messages": [USER, ANSWER], "train": False},
        {"messages": [USER, ANSWER | {"weight": 0}]},
    ],
)
def test_a_row_that_is_marked_is_left_out(row: formats.Row) -> None:
    with pytest.raises(LeftOut):
        read(row)


@pytest.mark.parametrize(
    ("row", "notes"),
    [
        ({"prompt": "q", "completion": "a", "label": True}, ()),
        ({"prompt": "q", "completion": "a", "label": "sports"}, ("label is not read",)),
        ({"text": "t", "label": 0}, ("label is not read",)),  # the name of a class
        ({"text": "t", "loss": 2.31, "system": "s"}, ("loss is not read", "system is not read")),
        ({"messages": [USER, ANSWER], "prompt": "q", "id": 7, "score": 0.4, "tags": [], "note": None},
         ("prompt is not read", "score is not read")),
        ({"messages": [USER, ANSWER | {"score": 1, "id": "x", "refusal": None}]}, ("messages.score is not read",)),
        ({"messages": [USER, ANSWER], "weight": 1, "chosen": [USER], "rejected": [USER]},
         ("chosen is not read", "rejected is not read")),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_named(row: formats.Row, notes: tuple[str, ...]) -> None:
    assert read(row).notes == notes


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_kept_under_every_name_they_have(key: str) -> None:
    assert read({"messages": [USER, ANSWER | {key: "hm"}]}).messages[1]["reasoning_content"] == "hm"


def test_a_system_column_is_the_first_turn_in_every_form() -> None:
    for row in ({"messages": [USER, ANSWER]}, {"conversations": [sharegpt(USER), sharegpt(ANSWER)]},
                {"prompt": [USER], "completion": [ANSWER]}):  # fmt: skip
        assert [turn["role"] for turn in read(row | {"system": "s"}).messages] == ["system", "user", "assistant"]
    twice = read({"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system": "s "})
    assert len(twice.messages) == 3


def test_settings_of_the_chat_template_are_the_rows() -> None:
    reading = Reading(variables=frozenset({"enable_thinking", "documents"}))
    row = {"messages": [USER, ANSWER], "chat_template_kwargs": {"enable_thinking": False, "mood": "glad", "x": None},
           "documents": [{"title": "t"}]}  # fmt: skip
    found = read(row, reading)
    assert found.settings == {"enable_thinking": False, "mood": "glad", "documents": [{"title": "t"}]}
    assert found.notes == ("chat_template_kwargs.mood is not read",)
    assert (
        read(row | {"chat_template_kwargs": '{"enable_thinking": true}'}, reading).settings["enable_thinking"] is True
    )


def test_parts_with_a_value_are_text_reasoning_and_calls() -> None:
    parts = [{"type": "reasoning", "value": "hm"}, {"type": "text", "value": "a"},
             {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": null}}'}]  # fmt: skip
    answer = read({"messages": [USER, {"role": "assistant", "content": parts, "loss_weight": 1.0}]}).messages[1]
    assert (answer["content"], answer["reasoning_content"]) == ("a", "hm")
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": None}}}]
    anthropic = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}},
    ]
    answer = read({"messages": [USER, {"role": "assistant", "content": anthropic}]}).messages[1]
    assert answer["reasoning_content"] == "hm" and answer["content"] == ""
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}, "id": "1"}]


def test_openais_functions_are_tools() -> None:
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
                     {"role": "function", "name": "f", "content": {"degrees": 21}}, ANSWER],
        "functions": [{"name": "f", "parameters": {}}],
    }  # fmt: skip
    found = read(row)
    assert found.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert found.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}
    assert found.messages[2] == {"role": "tool", "content": '{"degrees": 21}', "name": "f"}


@pytest.mark.parametrize(
    ("turns", "consecutive", "contents"),
    [
        ([USER, AGAIN, ANSWER], "join", ["q\n\nno", "a"]),
        ([USER, AGAIN, ANSWER], "keep", ["q", "no", "a"]),
        ([USER, ANSWER, LAST], "join", ["q", "a\n\nb"]),
        ([ANSWER, USER, LAST], "keep", ["a", "q", "b"]),
    ],
)
def test_turns_that_follow_one_another(turns: list[Any], consecutive: str, contents: list[str]) -> None:
    found = read({"messages": turns}, Reading(consecutive))
    assert [message["content"] for message in found.messages] == contents


def test_turns_that_cannot_be_joined() -> None:
    with pytest.raises(RowError, match="cannot be joined: their weight differs"):
        read({"messages": [USER, ANSWER | {"weight": 0}, LAST]}, Reading("join"))
    with pytest.raises(RowError, match="the assistant speaks first"):
        read({"messages": [ANSWER, USER, LAST]}, Reading("join"))
