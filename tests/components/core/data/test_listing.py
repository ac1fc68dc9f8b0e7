import hashlib
from pathlib import Path

import pytest

from qlora_pipelines.components.core.data import hub, listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import storage


@pytest.fixture
def data(place: Path) -> Path:
    folder = place / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"text": "a"}\n')
    (folder / "sub" / "b.csv.gz").write_bytes(b"x")
    return folder


def test_a_folder_is_read_as_it_was_listed(data: Path) -> None:
    files = listing.load(listing.save(listing.make(str(data))))
    assert [file.uri for file in files["train"]] == [str(data / "a.jsonl"), str(data / "sub" / "b.csv.gz")]
    assert files["train"][0].fetch(data) == data / "a.jsonl"


def test_one_file_is_listed_alone(data: Path) -> None:
    files = listing.load(listing.save(listing.make(str(data / "a.jsonl"), str(data / "sub"))))
    assert [file.uri for file in files["train"] + files["eval"]] == [
        str(data / "a.jsonl"),
        str(data / "sub" / "b.csv.gz"),
    ]


def test_the_digest_names_content_not_place(data: Path, tmp_path: Path) -> None:
    digest = listing.data_digest(listing.make(str(data)))
    data.rename(tmp_path / "elsewhere")
    assert listing.data_digest(listing.make(str(tmp_path / "elsewhere"))) == digest
    (tmp_path / "elsewhere" / "a.jsonl").write_text('{"text": "b"}\n')
    assert listing.data_digest(listing.make(str(tmp_path / "elsewhere"))) != digest


@pytest.mark.parametrize("change", ["write", "unlink"])
def test_changed_or_gone_since_planned_is_refused(data: Path, change: str) -> None:
    uri = listing.save(listing.make(str(data)))
    (data / "a.jsonl").unlink() if change == "unlink" else (data / "a.jsonl").write_text("other")
    with pytest.raises(InputError, match=r"a\.jsonl changed since the run was planned; start a new run"):
        listing.load(uri)


def test_a_file_that_came_later_is_not_read(data: Path) -> None:
    uri = listing.save(listing.make(str(data)))
    (data / "later.jsonl").write_text("{}")
    assert len(listing.load(uri)["train"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [("notes.txt", "notes.txt: this kind is not read"), ("empty.jsonl", "empty.jsonl: the file is empty")],
)
def test_what_cannot_be_data_is_named(data: Path, name: str, message: str) -> None:
    (data / name).write_text("" if "empty" in name else "x")
    with pytest.raises(InputError, match=message):
        listing.make(str(data))


def test_a_folder_of_documents_is_read_and_one_with_rows_too_is_not(data: Path, place: Path) -> None:
    (place / "texts").mkdir()
    for name in ("a.txt", "README.md", "b.md.gz"):
        (place / "texts" / name).write_text("x")
    assert [file[0] for file in listing.make(str(place / "texts"))["train"]["files"]] == [
        "README.md",
        "a.txt",
        "b.md.gz",
    ]
    (place / "texts" / "c.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"README\.md: this kind is not read next to files of rows; documents need"):
        listing.make(str(place / "texts"))


def test_what_datasets_saves_is_read_split_by_split(place: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"text": "a"}])
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(place / "saved"))
    [[name, *_]] = listing.make(str(place / "saved" / "train"))["train"]["files"]
    assert name.endswith(".arrow")
    with pytest.raises(InputError, match=r"saved: it is several splits \(test, train\); give the folder of one"):
        listing.make(str(place / "saved"))


def test_nothing_there_says_what_to_give(place: Path) -> None:
    with pytest.raises(
        InputError, match="nothing there; give a file, a folder, an s3://, gs:// or az:// prefix or a Hugging Face"
    ):
        listing.make(str(place / "none"))


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("org/name", ("org/name", "main", "")),
        ("org/name@v1.0", ("org/name", "v1.0", "")),
        ("org/name@refs%2Fconvert%2Fparquet", ("org/name", "refs/convert/parquet", "")),
        ("hf://datasets/org/name@abc/data/train", ("org/name", "abc", "data/train")),
        ("hf://datasets/org/name/file.jsonl", ("org/name", "main", "file.jsonl")),
        ("data/rows.jsonl/more", None),
        ("/abs/path", None),
        ("./org/name", None),
        ("s3://bucket/prefix", None),
        ("file", None),
    ],
)
def test_what_is_a_data_set_on_the_hub(uri: str, source: tuple[str, str, str] | None) -> None:
    assert hub.parse(uri) == source


def test_a_folder_here_is_not_sought_on_the_hub(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    assert hub.parse("data/sub") is None


def test_content_from_the_hub_is_checked_by_git_or_lfs(data: Path) -> None:
    file = data / "a.jsonl"
    blob = hashlib.sha1(b'blob 14\0{"text": "a"}\n').hexdigest()
    assert hub.checksum(file, f"git:{blob}") == f"git:{blob}"
    assert hub.checksum(file, "sha256:x") == f"sha256:{storage.sha256_file(file)}"


@pytest.mark.parametrize("content", ["{no", "[]", '{"train": 5}', '{"train": {"uri": "a"}}', "{}"])
def test_what_is_no_listing_is_refused(place: Path, content: str) -> None:
    (place / "listing.json").write_text(content)
    with pytest.raises(InputError) as error:
        listing.load(str(place / "listing.json"))
    assert str(error.value) == f"{place}/listing.json is no listing of data; give the listing_uri that plan_run printed"
