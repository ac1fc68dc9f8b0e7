"""Rows of Parquet and Arrow are as those of JSON: what a struct lacks is not there, and an explicit null stays."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.data import formats, readers
from qlora_pipelines.components.core.errors import InputError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
ROUTE = {
    "type": "function",
    "function": {
        "name": "route",
        "parameters": {
            "type": "object",
            "properties": {"start": {"type": "string"}, "mode": {"type": "string", "enum": ["bus", "rail"]}},
            "required": ["start"],
        },
    },
}


def row(tool: dict[str, Any], **arguments: Any) -> dict[str, Any]:
    call = {"id": "a", "type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "there", "tool_call_id": "a"},
            {"role": "assistant", "content": "done"},
        ],
        "tools": [tool],
    }


ROWS = [
    row(WEATHER, town="Ulm", days=[{"first": 1}, {"last": 2}]),
    row(ROUTE, goal={"place": "lamp"}),
    row(ROUTE, days=[], goal={"gate": "4"}),
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    row(ROUTE, goal={}),
]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"rows.{kind.partition(' ')[0]}"
    table = pa.Table.from_pylist(rows)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif kind == "arrow file":
        with pa.ipc.new_file(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    elif kind == "arrow stream":
        with pa.ipc.new_stream(str(path), table.schema) as file:
            file.write_table(table, max_chunksize=2)
    else:
        import datasets

        datasets.Dataset.from_list(rows, on_mixed_types="use_json").save_to_disk(str(folder / "saved"))
        [path] = (folder / "saved").glob("*.arrow")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [readers.decode(record) for _, record in readers.records(path, str(path))]


def conversations(path: Path) -> list[Any]:
    return [formats.conversation(row, "messages") for row in read(path)]


@pytest.mark.parametrize("kind", ["json", "parquet", "arrow file", "arrow stream", "arrow of datasets"])
def test_the_same_rows_give_the_same_conversations_from_every_kind(kind: str, tmp_path: Path) -> None:
    expected = conversations(written(tmp_path, "jsonl", ROWS))
    assert json.dumps(conversations(written(tmp_path, kind, ROWS))) == json.dumps(expected)
    assert "null" not in json.dumps(expected)


@pytest.mark.parametrize("as_text", [False, True], ids=["object", "JSON text"])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_null_that_json_says_stays(kind: str, as_text: bool, tmp_path: Path) -> None:
    given = row(WEATHER, until=None, within={"a": None, "b": [None, {"c": None}]})
    function = given["messages"][1]["tool_calls"][0]["function"]
    arguments = function["arguments"]
    given["tools"] = [{**WEATHER, "default": None}]
    if as_text:
        function["arguments"] = json.dumps(arguments)
        given["tools"] = json.dumps(given["tools"])
    [found] = conversations(written(tmp_path, kind, [given]))
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == arguments
    assert found.tools[0]["default"] is None


def test_json_within_parquet_keeps_its_nulls(tmp_path: Path) -> None:
    """As a string, and as Arrow's JSON, which `datasets` keeps what differs from row to row in."""
    tools = json.dumps([{**WEATHER, "default": None}])
    messages = [json.dumps(row(WEATHER, until=None)["messages"])] * 2
    table = pa.table({"messages": pa.array(messages), "tools": pa.array([tools, None], pa.json_())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    first, second = conversations(tmp_path / "a.parquet")
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"until": None}
    assert first.tools == [{**WEATHER, "default": None}] and second.tools == []


def test_what_arrow_can_tell_apart_stays(tmp_path: Path) -> None:
    inner = pa.struct({"a": pa.int64(), "b": pa.list_(pa.int64())})
    table = pa.table(
        {
            "map": pa.array([[("x", {"a": None, "b": [None]}), ("y", None)], None], pa.map_(pa.string(), inner)),
            "list": pa.array([[None, {"a": 1, "b": None}], []], pa.large_list(inner)),
            "struct": pa.array([{"a": None, "b": None}, None], inner),
            "dictionary": pa.array(["u", None]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [
        {"map": {"x": {"b": [None]}, "y": None}, "list": [None, {"a": 1}], "struct": {}, "dictionary": "u"},
        {"map": None, "list": [], "struct": None, "dictionary": None},
    ]


def test_a_row_without_messages_is_rejected_alike(tmp_path: Path) -> None:
    for kind in ("jsonl", "parquet"):
        path = written(tmp_path, kind, [*ROWS[:1], {"messages": None, "tools": None}])
        with pytest.raises(ValueError, match=r"^no messages$"):
            conversations(path)


def test_a_map_with_a_key_twice_and_json_that_is_none_are_rejected_row_by_row(tmp_path: Path) -> None:
    maps = pa.array([[("a", 1), ("a", 2)], [("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    table = pa.table({"m": maps, "j": pa.array(["1", "{", "[]"], pa.string())})
    table = table.set_column(
        1, "j", pa.chunked_array([pa.ExtensionArray.from_storage(pa.json_(), table["j"].chunk(0))])
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    records = [record for _, record in readers.records(tmp_path / "a.parquet", "a.parquet")]
    assert records == ["holds a map that has a key twice", "holds JSON that cannot be read", {"m": {}, "j": []}]


@pytest.mark.parametrize("kind", ["arrow file", "arrow stream"])
def test_an_arrow_file_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind, ROWS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"rows\.arrow: damaged, or not \.arrow after row \d"):
        read(path)
