"""prepare_dataset from an S3 prefix: the same data set as from the same files in a folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import listing, tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import copies, storage
from qlora_pipelines.components.prepare_dataset import task
from tests.conftest import conversation, write_jsonl

CONFIG = PrepareConfig(max_length=64, eval_share=0.2, max_rejected_share=0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of two kinds, with a row that cannot be used."""
    path = tmp_path / "data"
    (path / "more").mkdir(parents=True)
    write_jsonl(path / "rows.jsonl", [*(conversation(f"question {n}", f"cat {n}") for n in range(40)), {"none": 1}])
    rows = [conversation(f"other {n}", f"mat {n}") for n in range(40)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path / "more" / "rows.parquet")
    return path


def prepare(listing_uri: str, tokenizer_uri: str, folder: Path) -> task.Result:
    return task.run(
        CONFIG,
        listing_uri=listing_uri,
        tokenizer_uri=tokenizer_uri,
        train_set=str(folder / "train.parquet"),
        eval_set=str(folder / "eval.parquet"),
        rejected=str(folder / "rejected.jsonl"),
        report=str(folder / "report.html"),
    )


def test_a_prefix_gives_the_same_data_set_as_a_folder(
    own_store: str, folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    storage.upload(folder, f"{own_store}/data")
    storage.write_bytes(f"{own_store}/data-old/rows.jsonl", b"a neighbour of the prefix, not of it")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        storage.upload_file(tiny_model / name, f"{own_store}/tokenizer/{name}")
    listing_uri = listing.save(listing.make(f"{own_store}/data"))
    assert listing_uri.startswith(f"{own_store}/listings/")
    there, here = (tmp_path / name for name in ("there", "here"))
    found = prepare(listing_uri, f"{own_store}/tokenizer", there)
    assert found == prepare(listing.save(listing.make(str(folder))), str(tiny_model), here)
    assert found.train_rows + found.eval_rows == 80 and found.rejected_rows == 1
    assert (there / "train.parquet").read_bytes() == (here / "train.parquet").read_bytes()
    assert f'"file": "{own_store}/data/rows.jsonl", "line": 41' in (there / "rejected.jsonl").read_text()
    # What came out goes to S3 as the pipeline's artifacts do, and is read from there.
    storage.upload(there, f"{own_store}/artifacts")
    back = copies.download(f"{own_store}/artifacts", tmp_path / "back")
    assert len(tokenized.read(str(back / "train.parquet"), found.dataset_digest)) == found.train_rows


def test_an_object_that_changed_since_the_plan_is_refused(own_store: str, folder: Path, tiny_model: Path) -> None:
    storage.upload(folder, f"{own_store}/data")
    listing_uri = listing.save(listing.make(f"{own_store}/data"))
    storage.write_bytes(f"{own_store}/data/rows.jsonl", b'{"text": "other"}\n')
    with pytest.raises(InputError) as error:
        prepare(listing_uri, str(tiny_model), folder)
    assert str(error.value) == (f"data {own_store}/data: rows.jsonl changed since the run was planned; start a new run")


@pytest.mark.parametrize(("prefix", "reason"), [("empty", "nothing there; give a file, a folder, an s3://, gs:// or")])
def test_an_empty_prefix_is_refused(own_store: str, prefix: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        listing.make(f"{own_store}/{prefix}")
    assert str(error.value).startswith(f"data {own_store}/{prefix}: {reason}")
