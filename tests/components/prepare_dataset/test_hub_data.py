"""A data set on the hub, from a server that speaks its protocol: listed at its commit, looked into, and prepared."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.data import hub as hub_client
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.plan_run import preflight, sampling
from tests.components.prepare_dataset.test_task import distinct
from tests.components.stage_base_model.hub_server import COMMIT, Hub, serve
from tests.conftest import write_jsonl

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return distinct(60)


@pytest.fixture
def hub(rows: list[dict[str, Any]], place: Path) -> Iterator[Hub]:
    """A data set with two splits and what `datasets` writes beside them."""
    files = {"dataset_infos.json": b"{}", "README.md": b"rows"}
    for name, part in ((TRAIN, rows), (TEST, rows[:3])):
        pyarrow.parquet.write_table(pa.Table.from_pylist(part), place / "rows")
        files[name] = (place / "rows").read_bytes()
    with serve(Hub(files)) as hub:
        yield hub


def test_a_name_is_resolved_to_its_commit_and_its_training_split(hub: Hub) -> None:
    listed = listing.make("org/model")
    assert listed["train"]["uri"] == f"hf://datasets/org/model@{COMMIT}"
    [[path, size, digest]] = listed["train"]["files"]
    assert (path, size) == (TRAIN, len(hub.files[TRAIN])) and digest.startswith("sha256:")
    assert listing.make(f"org/model@{COMMIT}") == listed
    other = listing.make(f"hf://datasets/org/model@main/{TEST}")
    assert [file[0] for file in other["train"]["files"]] == [TEST]


def test_documents_are_read_where_there_is_nothing_else_without_card_and_licence(place: Path) -> None:
    with serve(Hub({name: b"text" for name in ("README.md", "LICENSE.txt", "train.py", "a.txt", "sub/README.md")})):
        assert [file[0] for file in listing.make("org/model")["train"]["files"]] == ["a.txt", "sub/README.md"]


def test_it_is_prepared_as_the_same_rows_from_a_file_are(
    hub: Hub, rows: list[dict[str, Any]], place: Path, prepared: Callable[..., Any]
) -> None:
    there = prepared(Path("org/model"))
    assert there.result == prepared(write_jsonl(place / "rows.jsonl", rows)).result
    assert f"org/model/{TRAIN}" in there.report


def test_its_first_rows_are_looked_into(hub: Hub, tiny_model: Path, place: Path) -> None:
    config = PlacedRun(base_model=str(tiny_model), dataset_uri="org/model", model_name="n", max_length=64)
    found = preflight.run(config, place / "files")
    assert not found.fatal and found.samples["train"].rows == 60
    asked = [wanted for method, name, wanted in hub.requests if name == TRAIN]
    assert asked and all(asked)  # by range, never whole


def test_lines_are_looked_into_by_range(hub: Hub, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files = {"train.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    monkeypatch.setattr(sampling, "START", 2000)
    file = listing.first_file(listing.make("org/model")["train"])
    start = sampling.first_rows(file)
    assert [row for _, row in start.rows] == rows[: len(start.rows)] and 5 < len(start.rows) < 30
    assert start.total_rows == pytest.approx(60, rel=0.2)


def test_other_bytes_than_were_listed_are_refused(hub: Hub, prepared: Callable[..., Any]) -> None:
    hub.wrong.add(TRAIN)
    with pytest.raises(InputError) as error:
        prepared(Path("org/model"))
    assert str(error.value) == (
        f"data hf://datasets/org/model@{COMMIT}: {TRAIN} is not the file that was listed; start a new run"
    )


@pytest.mark.parametrize(
    ("change", "uri", "message"),
    [
        ({"gated": True}, "org/model", "data org/model: it is gated: ask for access on its page on the hub, and set"),
        ({}, "org/model@nonsense", "data org/model: the hub has no revision nonsense of it; give a branch, a tag or"),
        ({}, "org/other", "data org/other: no file or folder of that name here, and the Hugging Face hub says: "),
        ({"files": {"README.md": b""}}, "org/model", "data org/model: nothing there; give a file, a folder, an s3://"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub: Hub, change: dict[str, Any], uri: str, message: str) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(InputError) as error:
        listing.make(uri)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_what_cannot_be_read_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between the client's own tries
    hub.refused.add(TRAIN)
    with pytest.raises(InputError, match=f"data hf://datasets/org/model@{COMMIT}: the Hugging Face hub says: "):
        hub_client.read(f"hf://datasets/org/model@{COMMIT}", TRAIN, 0, 10)
