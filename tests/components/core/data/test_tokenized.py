from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.data import tokenized
from qlora_pipelines.components.core.errors import InputError

ROWS = [
    {
        "id": f"{number:064x}",
        "input_ids": list(range(number % 5 + 1)),
        "labels": [-100] * (number % 5) + [number % 5],
        "messages": '[{"role": "user", "content": "né"}]',
        "tools": "",
        "group": str(number % 2),
        "slice": "",
    }
    for number in range(50)
]


def batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, tokenized.schema())


def write(folder: Path, sizes: list[int]) -> str:
    with tokenized.Writer({side: str(folder / side) for side in ("train", "eval")}) as writer:
        writer.write("eval", batch(ROWS[:3]))
        start = 0
        for size in sizes:
            writer.write("train", batch(ROWS[start : start + size]))
            start += size
        return writer.close()


def test_what_was_written_is_read(tmp_path: Path) -> None:
    digest = write(tmp_path, [50])
    samples = tokenized.read(str(tmp_path / "train"), digest)
    assert [sample.id for sample in samples] == [row["id"] for row in ROWS]
    assert [sample.encoded.input_ids for sample in samples] == [row["input_ids"] for row in ROWS]
    assert [sample.encoded.labels for sample in samples] == [row["labels"] for row in ROWS]
    assert samples[1].group == "1" and samples[1].tools == [] and samples[1].messages[0]["content"] == "né"


def test_the_digest_does_not_hang_on_batches_or_slices(tmp_path: Path) -> None:
    assert write(tmp_path / "a", [50]) == write(tmp_path / "b", [1, 20, 29])
    whole, parts = tokenized.Digest(), tokenized.Digest()
    whole.update(batch(ROWS))
    for start in range(0, 50, 7):
        parts.update(batch(ROWS).slice(start, 7))
    assert whole.hexdigest() == parts.hexdigest()


@pytest.mark.parametrize("column", ["input_ids", "labels", "messages", "group", "id"])
def test_any_altered_value_is_refused(tmp_path: Path, column: str) -> None:
    digest = write(tmp_path, [50])
    table = pyarrow.parquet.read_table(tmp_path / "train")
    metadata = pyarrow.parquet.ParquetFile(tmp_path / "train").metadata.metadata
    rows = table.to_pylist()
    rows[7][column] = [0] * len(rows[7][column]) if isinstance(rows[7][column], list) else "[]"
    altered = pa.Table.from_pylist(rows, tokenized.schema()).replace_schema_metadata(
        {key: value for key, value in metadata.items() if not key.startswith(b"ARROW")}
    )
    pyarrow.parquet.write_table(altered, tmp_path / "train")
    with pytest.raises(InputError, match="its content is not that of dataset_digest"):
        tokenized.read(str(tmp_path / "train"), digest)


def test_another_digest_and_another_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [50])
    with pytest.raises(InputError, match="not that of dataset_digest 000000000000"):
        tokenized.read(str(tmp_path / "train"), "0" * 64)
    (tmp_path / "broken").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"data set .*broken: "):
        tokenized.read(str(tmp_path / "broken"), "0" * 64)


def test_an_unfinished_set_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), tokenized.Writer({"train": str(tmp_path / "train")}) as writer:
        writer.write("train", batch(ROWS))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
