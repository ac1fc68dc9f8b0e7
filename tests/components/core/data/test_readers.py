import csv
import gzip
import json
import lzma
import math
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_pipelines.components.core.data import formats, readers
from qlora_pipelines.components.core.errors import InputError

ROWS = [{"prompt": f"question {number}", "completion": "né 中"} for number in range(300)]


def compressed(path: Path, data: bytes) -> Path:
    kinds = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(data))
        return path
    with pa.output_stream(str(path), compression=kinds.get(path.suffix)) as stream:
        stream.write(data)
    return path


def rows(path: Path) -> list[tuple[int, dict[str, object]]]:
    return [(number, readers.decode(record)) for number, record in readers.records(path, str(path))]


def content(kind: str, folder: Path) -> bytes:
    if kind == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    if kind == "json":
        return json.dumps(ROWS, indent=1).encode()
    if kind == "csv":
        with (folder / "rows").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(str(folder / "rows"), table.schema) as stream:
            stream.write_table(table)
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), folder / "rows")
    return (folder / "rows").read_bytes()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_kind_gives_the_same_rows(kind: str, compression: str, tmp_path: Path) -> None:
    found = rows(compressed(tmp_path / f"data.{kind}{compression}", content(kind, tmp_path)))
    assert [row for _, row in found] == ROWS
    assert found[0][0] == (2 if kind == "csv" else 1)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".bz2", ".xz"])
def test_compressed_data_cut_short_names_the_file_and_the_row(compression: str, tmp_path: Path) -> None:
    noise = [{"text": str(math.sin(number))} for number in range(150_000)]
    whole = compressed(tmp_path / "whole.gz".replace(".gz", compression), "\n".join(map(json.dumps, noise)).encode())
    cut = tmp_path / f"cut.jsonl{compression}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(
        InputError, match=rf"cut\.jsonl{compression}: compressed data cut short or damaged after row \d\d+"
    ):
        rows(cut)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"a": 1}', "must hold one list of rows"),
        ("a.json", b'[{"a": 1}, {"a"', "damaged, or not .json after row 1"),
        ("a.parquet", b"PAR1 no", "damaged, or not .parquet after row 0"),
        ("a.arrow", b"ARROW1\0\0 no", "damaged, or not .arrow after row 0"),
        ("a.arrow", b"no", "damaged, or not .arrow after row 0"),
        ("a.jsonl.xz", b"plain", "compressed data cut short or damaged after row 0"),
        ("a.jsonl.bz2", b"plain", "compressed data cut short or damaged after row 0"),
        ("a.jsonl.gz", b"plain", "compressed data cut short or damaged after row 0"),
        ("a.csv", b'a,b\n"1,2', "damaged, or not .csv after row 0"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns are called a; rename one"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        rows(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a\xff"}\n', "not UTF-8"),
        (b'{"text": "the last li', "not JSON; the file ends in the middle of this line"),
        (b'{"text": "secret"\n', "not JSON"),
        (b"[1]\n", "not a JSON object with columns"),
        (b"[" * 100_000 + b"\n", "nested too deep"),
        ("the line is longer than 64 MiB", "longer than 64 MiB"),
    ],
)
def test_a_line_that_holds_no_row_has_a_reason_that_quotes_nothing(line: bytes | str, reason: str) -> None:
    with pytest.raises(ValueError) as error:
        readers.decode(line)
    assert reason in str(error.value) and "secret" not in str(error.value)


def test_what_is_odd_but_json_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": NaN}\n\n \n{"n": 123456789012345678901234567890}\n{"n": "\xe2\x80\xa8"}')
    assert [number for number, _ in rows(path)] == [1, 4, 5]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + b"x" * 1000 + b'\n{"a": 2}\n')
    records = list(readers.records(tmp_path / "a.jsonl", "a.jsonl"))
    assert records == [(1, b'{"a": 1}\n'), (2, "the line is longer than 0 MiB"), (3, b'{"a": 2}\n')]


@pytest.mark.parametrize(
    "suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "jsonl.zst", "json.gz", "arrow", "jsonl.xz", "tar", "md"]
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300),
    start=st.sampled_from([b"", b'[{"a":', b'{"text": "', b"text\n", b"\x1f\x8b", b"ARROW1\0\0", b"\xff\xff\xff\xff"]),
)
def test_any_bytes_give_rows_reasons_or_one_clear_line(suffix: str, data: bytes, start: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"data.{suffix}")
        path.write_bytes(start + data)
        try:
            for _, records in readers.files(path, str(path)):
                for _, record in records:
                    _usable(record)
        except InputError as error:
            assert f"data.{suffix}" in str(error) and "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"]) | JSON, "content": st.text() | JSON},
    optional={"tool_calls": JSON, "name": JSON},
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(TURN, max_size=4) | JSON,
        "conversations": st.lists(st.fixed_dictionaries({"from": JSON, "value": JSON}), max_size=3) | JSON,
        **{name: JSON for name in ("prompt", "completion", "instruction", "input", "output", "text", "history")},
        **{name: JSON for name in ("tools", "group", "slice", "system")},
    },
)


@settings(max_examples=300, deadline=None)
@given(row=ROW, form=st.sampled_from([*formats.COLUMNS, ""]))
def test_any_row_is_a_conversation_or_has_a_reason(row: formats.Row, form: str) -> None:
    _usable(row, form)


def _usable(record: object, form: str = "") -> None:
    try:
        row = readers.decode(record)  # type: ignore[arg-type]
        found = formats.conversation(row, form or formats.most_common_form([row]))
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert found.messages or found.text
    assert all(isinstance(message["content"], str) for message in found.messages)


def test_gzip_of_several_members_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert [row for _, row in rows(path)] == [{"a": 1}, {"a": 2}]


def test_rows_that_are_none_say_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n\n3\n4,5,6\n")
    assert [record for _, record in readers.records(tmp_path / "a.csv", "a.csv")] == [
        {"a": "1", "b": "2"},
        "1 cells in a file of 2 columns",
        "3 cells in a file of 2 columns",
    ]
    (tmp_path / "a.json").write_text('[{"a": 1}, [1], null]')
    records = [record for _, record in readers.records(tmp_path / "a.json", "a.json")]
    assert records == [{"a": 1}, readers.NO_OBJECT, readers.NO_OBJECT]


def test_a_parquet_file_is_read_in_less_memory_than_its_row_group(tmp_path: Path) -> None:
    rows = 60_000
    text = pa.array([f"{number} " * 150 for number in range(rows)])
    pyarrow.parquet.write_table(pa.table({"text": text}), tmp_path / "a.parquet", row_group_size=rows, compression=None)
    before = pa.default_memory_pool().bytes_allocated()
    del text
    most = 0
    for _ in readers.records(tmp_path / "a.parquet", "a.parquet"):
        most = max(most, pa.default_memory_pool().bytes_allocated())
    assert most - before < (tmp_path / "a.parquet").stat().st_size / 4


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.md.xz"])
def test_a_document_is_a_row_of_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed(tmp_path / name, "\ufeff# A\r\n\nb\u2028c\n".encode())
    assert rows(tmp_path / name) == [(1, {"text": "# A\r\n\nb\u2028c\n"})]
    compressed(tmp_path / name, b"\xff")
    assert list(readers.records(tmp_path / name, name)) == [(1, "not UTF-8")]
    monkeypatch.setattr(readers, "LONGEST_LINE", 5)
    compressed(tmp_path / name, b"123456")
    assert list(readers.records(tmp_path / name, name)) == [(1, "the document is longer than 0 MiB")]
