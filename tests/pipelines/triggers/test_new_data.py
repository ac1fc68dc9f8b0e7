"""What a trigger sees of the data: changes during the listing, its age, and how many rows are new."""

import gzip
import os
import time
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.pipelines.triggers import new_data


@pytest.fixture
def data(place: Path) -> Path:
    (place / "data").mkdir()
    write(place / "data" / "a.jsonl", 10)
    return place / "data"


def write(path: Path, rows: int) -> None:
    path.write_text('{"text": "one row"}\n' * rows)


def saved(data: Path) -> str:
    """The digest of the data as it is now, with its listing in the store."""
    listed = listing.make(str(data))
    listing.save(listed)
    return listing.data_digest(listed)


def count(data: Path, former: str, enough: int = 1000) -> int:
    return new_data.new_rows(listing.make(str(data)), former, enough)


def test_without_a_former_listing_all_rows_are_new(data: Path) -> None:
    assert count(data, "") == count(data, "0" * 64) == 10


def test_a_store_that_cannot_be_asked_is_no_reason_to_start(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = saved(data)
    monkeypatch.delenv("QLORA_STORE")
    with pytest.raises(InputError, match="QLORA_STORE is not set"):
        count(data, former)


def test_new_files_count_whole_and_grown_ones_by_what_they_grew(data: Path) -> None:
    former = saved(data)
    assert count(data, former) == 0
    write(data / "b.jsonl", 7)
    with gzip.open(data / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "one row"}\n' * 5)
    assert count(data, former) == 12
    write(data / "a.jsonl", 14)
    assert count(data, former) == 16
    (data / "b.jsonl").unlink()
    assert count(data, former) == 9


def test_counting_ends_where_it_is_enough(data: Path) -> None:
    former = saved(data)
    write(data / "b.jsonl", 100)
    write(data / "c.jsonl", 100)
    (data / "d.csv").write_text("text\nrow\n")
    (data / "d.csv").chmod(0)
    assert count(data, former, 150) == 150
    (data / "d.csv").chmod(0o600)


def config(data: Path, tiny_model: Path) -> RunConfig:
    return RunConfig(base_model=str(tiny_model), dataset_uri=str(data), model_name="tiny")


def test_the_age_of_the_data_is_that_of_its_newest_file(data: Path, tiny_model: Path) -> None:
    os.utime(data / "a.jsonl", (time.time() - 500,) * 2)
    assert 499 < new_data.snapshot(config(data, tiny_model)).quiet < 520
    write(data / "b.jsonl", 1)
    assert new_data.snapshot(config(data, tiny_model)).quiet < 20


@pytest.mark.parametrize("change", ["grow", "come", "go"])
def test_data_that_changes_while_it_is_listed_is_refused(
    change: str, data: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = base_model.resolve

    def changing(name: str, revision: str) -> str:
        if change == "go":
            (data / "a.jsonl").unlink()
        else:
            write(data / ("a.jsonl" if change == "grow" else "b.jsonl"), 30)
        return resolve(name, revision)

    monkeypatch.setattr(base_model, "resolve", changing)
    with pytest.raises(InputError, match=r"data .*\.jsonl changed while it was listed: somebody is writing there"):
        new_data.snapshot(config(data, tiny_model))


def test_an_empty_folder_is_refused(data: Path, tiny_model: Path) -> None:
    (data / "a.jsonl").unlink()
    with pytest.raises(InputError, match="nothing there; give a file, a folder"):
        new_data.snapshot(config(data, tiny_model))
