"""The same tree gives the same rows from a folder and from a store: each file is read, or refused by its name."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.data import listing, readers
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import connections, storage
from qlora_pipelines.components.core.store.addresses import locate
from tests.meddling import Meddler


@pytest.fixture
def tree(place: Path) -> Path:
    """Files in folders, one of which has a name beyond ASCII."""
    for name in ("a.jsonl", "sub/b.jsonl", "sub/more/ü ö.jsonl", "sub.jsonl", "%41.jsonl", "z..y.jsonl"):
        (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "data" / name).write_text(f'{{"text": "{name}"}}\n')
    return place / "data"


def rows(uri: str, folder: Path) -> list[object]:
    """All rows of what a run is given as data, in its order."""
    files = listing.load(listing.save(listing.make(uri)))["train"]
    return [readers.decode(raw) for file in files for _, raw in readers.records(file.fetch(folder), file.uri)]


@pytest.fixture
def copied(tree: Path, bucket: str) -> str:
    storage.upload(tree, f"{bucket}/data")
    storage.write_bytes(f"{bucket}/data-old/x.jsonl", b"{}")
    return f"{bucket}/data"


def put(between: Meddler, uri: str, content: bytes = b"") -> None:
    place = locate(uri)
    connections.client(between.address).put_object(Bucket=place.bucket, Key=place.key, Body=content)


def test_a_folder_and_a_bucket_give_the_same_rows(tree: Path, copied: str, tmp_path: Path) -> None:
    found = rows(str(tree), tmp_path)
    assert len(found) == 6 and rows(copied, tmp_path) == found


def test_what_stands_for_a_folder_is_none(tree: Path, copied: str, between: Meddler, tmp_path: Path) -> None:
    for name in ("", "sub/", "sub/more/", "empty/"):
        put(between, f"{copied}/{name}")
    put(between, f"{copied}/sub")  # as other tools write it
    (tree / "empty").mkdir()
    assert rows(copied, tmp_path) == rows(str(tree), tmp_path)


@pytest.mark.parametrize("name", [".hidden.jsonl", ".folder/a.jsonl", "sub/.b.jsonl", ".gitignore"])
def test_a_hidden_file_is_refused_by_name(name: str, tree: Path, copied: str) -> None:
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("{}")
    storage.upload_file(tree / name, f"{copied}/{name}")
    for uri in (str(tree), copied):
        with pytest.raises(InputError, match=f"data {uri}/{name}: hidden files are not read; remove it, or rename it"):
            listing.make(uri)


def test_an_empty_file_is_refused_by_name(tree: Path, copied: str) -> None:
    (tree / "empty.jsonl").touch()
    storage.write_bytes(f"{copied}/empty.jsonl", b"")
    for uri in (str(tree), copied):
        with pytest.raises(InputError, match=r"empty\.jsonl: the file is empty"):
            listing.make(uri)


@pytest.mark.parametrize("name", ["a\nb.jsonl", "a\\b.jsonl"])
def test_a_name_that_is_none_everywhere_is_refused(name: str, tree: Path, copied: str, between: Meddler) -> None:
    (tree / name).write_text('{"text": "a"}\n')
    if "\n" not in name:  # moto takes none; Ceph does, and a listing of it is refused
        put(between, f"{copied}/{name}", b'{"text": "a"}\n')
    for uri in (str(tree), copied)[: 1 if "\n" in name else 2]:
        with pytest.raises(InputError, match=r"a.*b") as error:
            listing.make(uri)
        assert "rename" in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_not_utf8_is_refused(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\xfe.jsonl")).write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"'\\udcff\\udcfe\.jsonl' is no name for a file below a folder") as error:
        listing.make(str(tree))
    str(error.value).encode()


def test_symlinks_are_followed(tree: Path, place: Path, tmp_path: Path) -> None:
    found = rows(str(tree), tmp_path)
    (place / "elsewhere").mkdir()
    (tree / "sub").rename(place / "elsewhere" / "sub")
    (tree / "sub").symlink_to(place / "elsewhere" / "sub")
    (tree / "a.jsonl").rename(place / "elsewhere" / "a")
    (tree / "a.jsonl").symlink_to(place / "elsewhere" / "a")
    assert rows(str(tree), tmp_path) == found
    (place / "link").symlink_to(tree)
    assert len(rows(str(place / "link"), tmp_path)) == len(found)


def loop(tree: Path) -> None:
    (tree / "sub" / "x").symlink_to(tree)


def nothing(tree: Path) -> None:
    (tree / "x").symlink_to(tree / "none")


def itself(tree: Path) -> None:
    (tree / "x").symlink_to(tree / "x")


def pipe(tree: Path) -> None:
    os.mkfifo(tree / "x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (loop, "sub/x: is a symlink to a folder that it is in; remove it"),
        (nothing, "/x: is a symlink to nothing; remove it"),
        (itself, "/x: cannot be read: Too many levels of symbolic links"),
        (pipe, "/x: is neither a file nor a folder; remove it"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(damage: Callable[[Path], None], message: str, tree: Path) -> None:
    damage(tree)
    with pytest.raises(InputError, match=message):
        listing.make(str(tree))


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that anybody may enter, and no rights of root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_may_not_be_read_is_refused_by_name(what: str, as_nobody: Path) -> None:
    (as_nobody / "data" / "folder").mkdir(parents=True)
    for name in ("file", "folder/b.jsonl", "a.jsonl"):
        (as_nobody / "data" / name).write_text('{"text": "a"}\n')
    (as_nobody / "data" / what).chmod(0)
    with pytest.raises(InputError, match=f"/{what}: cannot be read: Permission denied"):
        listing.make(str(as_nobody / "data"))
    (as_nobody / "data" / what).chmod(0o700)


def test_a_base_has_the_same_files_everywhere(bucket: str, place: Path, between: Meddler) -> None:
    """Hidden files are no part of a base: nothing that loads one reads them."""
    for name in ("config.json", "model.safetensors", "sub/a.json", ".gitattributes", ".cache/x"):
        (place / "base" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "base" / name).write_text("{}")
    storage.upload(place / "base", f"{bucket}/base")
    put(between, f"{bucket}/base/sub/")
    names = ["config.json", "model.safetensors", "sub/a.json"]
    assert sorted(storage.sizes(str(place / "base"))) == sorted(storage.sizes(f"{bucket}/base")) == names
    folder = base_model.fetch(f"{bucket}/base", place / "copy")
    assert sorted(storage.sizes(str(folder))) == names
