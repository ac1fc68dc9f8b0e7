"""The first rows of every kind of file, and what is reckoned from them."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.core import data_listing
from components.core.config import RunConfig
from components.core.errors import InputError
from components.plan_run import sampling
from tests.conftest import conversation, write_jsonl

NO_ROW = "its first row is not a JSON object; see the README for the forms that are read"
ROWS = [conversation(f"question {n}", "cat sat on the mat") for n in range(5000)]


def first_rows(path: Path) -> sampling.Start | None:
    return sampling.first_rows(data_listing.first_file(data_listing.make(str(path))["train"]))


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, "zstd", asbytes=True))


@pytest.mark.parametrize("compressed", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", '[{"text": "a, b"}, {"text": "c"}, {"te'),
        ("rows.jsonl", '{"text": "a, b"}\n{"text": "c"}\n{"te'),
        ("rows.csv", "text\n'a, b'\nc\n"),
    ],
)
def test_the_first_rows_of_each_kind_of_file(tmp_path: Path, name: str, content: str, compressed: str) -> None:
    path = tmp_path / f"{name}{compressed}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[compressed](content.encode()))
    start = first_rows(path)
    assert start and len(start.rows) == 2


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_rows_and_tokens_are_reckoned_from_the_start(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    path = tmp_path / f"many.{kind}"
    plain = write_jsonl(tmp_path / "plain", ROWS).read_bytes()
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        path.write_bytes({"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstd}[kind](plain))
    config = RunConfig.parse(base_model=str(tiny_model), dataset_uri=str(path), model_name="n", max_length=64)
    found = sampling.look(data_listing.make(str(path))["train"], config, tiny_model)
    assert found and found.rows == pytest.approx(5000, rel=0 if kind == "parquet" else 0.1)
    assert 5 < found.tokens_a_row < 64 and 0 < found.supervised < 1


@pytest.mark.parametrize("cut", [1000, 100_000])
@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_a_start_that_ends_within_a_packed_block_still_gives_rows(tmp_path: Path, kind: str, cut: int) -> None:
    import random

    rng = random.Random(0)
    rows = [conversation(str(rng.getrandbits(400)), str(rng.getrandbits(400))) for _ in range(3000)]
    data = {".gz": gzip.compress, ".zst": zstd}[kind](write_jsonl(tmp_path / "plain", rows).read_bytes())
    start = sampling._rows(sampling._unpacked(data[:cut], f"a.jsonl{kind}").decode(errors="ignore"), "a.jsonl")
    assert start == rows[: len(start)]
    assert len(start) > 10 or cut == 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.parquet", b"PAR1 no more", "damaged, or not .parquet; write the file again"),
        ("rows.jsonl.gz", b"no gzip", "its first row is not a JSON object; see the README for the forms that are read"),
        (
            "rows.jsonl.zst",
            b"no zstd",
            "its first row is not a JSON object; see the README for the forms that are read",
        ),
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


def test_compressed_parquet_and_hub_data_are_left_to_preparation(tmp_path: Path) -> None:
    hub: dict[str, Any] = {"uri": "hf://datasets/org/name@abc", "files": [["rows.jsonl", 10, "git:1"]]}
    assert sampling.first_rows(data_listing.first_file(hub)) is None
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    assert first_rows(tmp_path / "rows.parquet.gz") is None
