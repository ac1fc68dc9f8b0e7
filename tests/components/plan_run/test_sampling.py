"""The first rows of every kind of file, and what is reckoned from them."""

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.plan_run import sampling
from tests.conftest import conversation, write_jsonl

ROWS = [conversation(f"question {n}", "cat sat on the mat") for n in range(5000)]


def first_rows(path: Path) -> sampling.FirstRows:
    return sampling.first_rows(listing.first_file(listing.make(str(path))["train"]))


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", '[{"text": "a, b"}, {"text": "c"}]'),
        ("rows.jsonl", '{"text": "a, b"}\n{"text": "c"}\n{"te'),
        ("rows.csv", 'text\n"a, b"\n"c\nd"\n'),
    ],
)
def test_the_first_rows_of_each_kind_of_file(tmp_path: Path, name: str, content: str, compressed: str) -> None:
    path = tmp_path / f"{name}{compressed}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[compressed](content.encode()))
    start = first_rows(path)
    assert len(start.rows) == 2 == start.total_rows - len(start.unreadable)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_rows_and_tokens_are_reckoned_from_the_start(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    path = tmp_path / f"many.{kind}"
    plain = write_jsonl(tmp_path / "plain", ROWS).read_bytes()
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes({"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd}[kind](plain))
    config = RunConfig.parse(base_model=str(tiny_model), dataset_uri=str(path), model_name="n", max_length=64)
    found = sampling.sample(listing.make(str(path))["train"], config, tiny_model)
    assert found.rows == pytest.approx(5000, rel=0 if kind == "parquet" else 0.1)
    assert 5 < found.tokens_per_row < 64 and 0 < found.supervised < 1


@pytest.mark.parametrize("start", [1000, 100_000])
@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".csv", ".csv.zst"])
def test_a_start_that_ends_anywhere_gives_whole_rows(
    tmp_path: Path, kind: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    rows = [{"prompt": str(rng.getrandbits(400)), "completion": str(rng.getrandbits(400))} for _ in range(6000)]
    plain = "".join(json.dumps(row) + "\n" for row in rows)
    if kind.startswith(".json") and "jsonl" not in kind:
        plain = json.dumps(rows)
    if kind.startswith(".csv"):
        plain = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows)
    path = tmp_path / f"rows{kind}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[kind.removeprefix(f".{kind.split('.')[1]}")](
        plain.encode()))  # fmt: skip
    monkeypatch.setattr(sampling, "START", start)
    found = first_rows(path)
    assert [row for _, row in found.rows] == rows[: len(found.rows)]
    assert found.total_rows == pytest.approx(len(rows), rel=0.1 if start > 1000 and kind.count(".") == 1 else 0.5)


def test_a_first_row_longer_than_the_start_is_read(tmp_path: Path) -> None:
    long = {"prompt": "q", "completion": "a " * 2_500_000}
    start = first_rows(write_jsonl(tmp_path / "rows.jsonl", [long] * 4))
    assert start.rows[0] == (1, long) and 2 < start.total_rows < 6


def test_a_first_line_that_is_broken_is_passed_over(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    path.write_text("{broken\n" + path.read_text())
    assert first_rows(path).rows[0] == (2, ROWS[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"PAR1 no more", "damaged, or not .parquet after row 0; write the file again"),
        ("rows.json", b'[{"text": "a"}, {"te', "damaged, or not .json after row 1; write the file again"),
        ("rows.jsonl.gz", b"no gzip", "compressed data cut short or damaged after row 0; write the file again"),
        ("rows.jsonl.zst", b"no zstd", "compressed data cut short or damaged after row 0; write the file again"),
        ("rows.jsonl", b"\n \n", "its first rows cannot be read; see the README for the kinds that are read"),
    ],
)
def test_a_start_that_is_none(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        first_rows(path)
    assert str(error.value) == f"data {path}: {message}"


def test_a_parquet_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="it has no rows"):
        first_rows(path)


def test_of_a_large_parquet_file_a_few_pages_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": [str(rng.getrandbits(4000)) for _ in range(40_000)]}), path)
    content, read = path.read_bytes(), []

    def part(offset: int, size: int) -> bytes:
        read.append(size)
        return content[offset : offset + size]

    monkeypatch.setattr(listing.DataFile, "open", lambda _: listing._buffered(part, len(content)))
    found = first_rows(path)
    assert (len(found.rows), found.total_rows) == (sampling.ROWS, 40_000)
    assert sum(read) < len(content) / 5
