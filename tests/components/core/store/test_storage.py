import os
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.core.store.storage import Entry


def test_a_store_that_can_be_written_keeps_no_trace_of_it(tmp_path: Path) -> None:
    storage.check_writable(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/store/probe-\w+: cannot be written: Not a directory"):
        storage.check_writable(str(tmp_path / "file" / "store"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/file", "a", ".hidden", ".hidden-folder/file"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    os.utime(tmp_path / "a", (5.0, 5.0))
    return tmp_path


def test_hidden_files_are_listed_on_demand_only(folder: Path) -> None:
    assert storage.sizes(str(folder)) == {"a": 1, "b/file": 6}
    everything = {entry.path: entry.size for entry in storage.files(str(folder), hidden=True)}
    assert everything == {"a": 1, "b/file": 6, ".hidden": 7, ".hidden-folder/file": 19}


def test_a_listing_tells_files_apart_by_their_content_and_not_by_their_age(folder: Path) -> None:
    first, second = storage.listing(str(folder))
    digest = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert (first, first.modified) == (Entry("a", 1, digest), 5.0)
    assert storage.file_uri(str(folder), second) == f"{folder}/b/file"
    (alone,) = storage.listing(str(folder / "a"))
    assert alone == first and storage.file_uri(str(folder / "a"), alone) == f"{folder}/a"
    assert storage.listing(str(folder / "none")) == []


def test_a_range_ends_where_the_file_does(folder: Path) -> None:
    uri = str(folder / "b" / "file")
    assert storage.read_range(uri, 2, 100) == b"file" and storage.read_range(uri, 2, 2) == b"fi"
    assert storage.read_bytes(uri, 1) == b"b" and storage.read_range(uri, 0, 0) == b""
    assert list(storage.stream(uri, 2, 2)) == [(2, b"fi")]


def test_removing_takes_files_and_folders_and_what_is_not_there(folder: Path) -> None:
    for name in ("a", "b", "none"):
        storage.remove(str(folder / name), first="file")
    assert sorted(path.name for path in folder.iterdir()) == [".hidden", ".hidden-folder"]


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    assert (storage.free_bytes(str(tmp_path / "not" / "there")) or 0) > 0
    assert storage.free_bytes("s3://bucket/key") is None
    assert storage.is_remote("s3://bucket/key")
