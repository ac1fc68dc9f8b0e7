import pytest

from qlora_pipelines.components.core.data import formats

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}


def messages(row: formats.Row) -> list[dict[str, object]]:
    return formats.conversation(row, formats.most_common_form([row])).messages


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        {"messages": [{**USER, "name": None, "tool_calls": None}, ASSISTANT], "text": "not this"},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "q", "input": "", "output": "a"},
        {"instruction": "q", "input": None, "output": "a"},
    ],
)
def test_every_form_gives_the_conversation(row: formats.Row) -> None:
    assert messages(row) == [USER, ASSISTANT]


def test_system_history_and_input_are_used() -> None:
    row = {"system": "s", "instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]]}
    assert [turn["content"] for turn in messages(row)] == ["s", "x", "y", "q\n\ni", "a"]


def test_tool_calls_keep_their_order_and_become_objects() -> None:
    row = {
        "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                     {"role": "tool", "content": "3", "tool_call_id": "1"}, ASSISTANT],
        "tools": '[{"type": "function"}]',
    }  # fmt: skip
    found = formats.conversation(row, "messages")
    assert found.tools == [{"type": "function"}]
    assert list(found.messages[1]["tool_calls"][0]["function"]["arguments"].items()) == [("b", 2), ("a", 1)]
    assert found.messages[1]["content"] == "" and found.messages[2]["tool_call_id"] == "1"


def test_sharegpt_calls_tools() -> None:
    turns = [
        ("human", "q"),
        ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
        ("observation", "3"),
        ("gpt", "a"),
    ]
    found = messages({"conversations": [{"from": who, "value": what} for who, what in turns]})
    assert [turn["role"] for turn in found] == ["user", "assistant", "tool", "assistant"]
    assert found[1]["tool_calls"][0]["function"] == {"name": "add", "arguments": {"a": 1}}


def test_group_and_slice_travel() -> None:
    found = formats.conversation({"text": "t", "group": 7, "slice": "hard"}, "text")
    assert (found.text, found.group, found.slice, found.messages) == ("t", "7", "hard", [])


def test_columns_are_renamed() -> None:
    row = formats.renamed({"q": "x", "a": "y"}, {"prompt": "q", "completion": "a"})
    assert formats.form_of(row) == "prompt_completion"
    with pytest.raises(ValueError, match="no column z, which columns names for prompt"):
        formats.renamed(row, {"prompt": "z"})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": []}, "messages is not a list of turns"),
        ({"messages": [None]}, "a turn is not an object"),
        ({"messages": [{"role": "user", "content": None}, ASSISTANT]}, "the user's content is not text"),
        ({"messages": [{"role": "user", "content": {"a": None}}, ASSISTANT]}, "the user's content is not text"),
        ({"messages": [{"role": "doctor", "content": "q"}]}, "unknown role doctor"),
        ({"messages": [{"role": "Jane Doe, 1 High Street", "content": "q"}]}, "^unknown role$"),
        ({"messages": [USER, USER, ASSISTANT]}, "two user turns in a row"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [ASSISTANT, USER]}, "the assistant speaks first"),
        ({"messages": [{"role": "user", "content": " \n"}, ASSISTANT]}, "the user's content is empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]}, "has a part that is not text"),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{"function": {}}]}]}, "a tool call names no function"),
        ({"messages": [{**USER, "tool_calls": [CALL]}, ASSISTANT]}, "the user calls tools"),
        ({"messages": [USER, ASSISTANT], "tools": "x"}, "tools is text, but not JSON"),
        ({"messages": [USER, ASSISTANT], "group": {}}, "group is not text or a number"),
        ({"prompt": "", "completion": "a"}, "the user's content is empty"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history is not a list of pairs"),
        ({"text": ""}, "text is empty"),
        ({"a": 1}, "of no known form; name its columns in columns"),
    ],
)
def test_a_row_that_cannot_be_used_has_a_reason(row: formats.Row, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        messages(row)


def test_a_file_has_the_form_of_most_of_its_rows() -> None:
    rows = [{"text": "t"}, {"prompt": "q", "completion": "a"}, {"text": "u"}]
    assert formats.most_common_form(rows) == "text"
    with pytest.raises(ValueError, match="of form prompt_completion in a file of form text"):
        formats.conversation(rows[1], "text")
