"""Staging from a hub that fails in the ways hubs do."""

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.config.steps import StageConfig
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import attempts
from qlora_pipelines.components.stage_base_model import copying, task
from tests.components.stage_base_model.hub_server import COMMIT, Hub, serve

WEIGHTS = bytes(range(256)) * 4096
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle",
    "README.md": b"a model",
}
STAGED = {name for name in FILES if name.endswith((".json", ".safetensors"))}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, place: Path) -> Iterator[Hub]:
    """The hub that huggingface_hub asks."""
    from huggingface_hub import constants

    with serve(Hub(dict(FILES))) as hub:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what it writes at a time, and so resumes from
        yield hub


def stage(revision: str = COMMIT) -> Path:
    return Path(task.run(StageConfig(base_model="org/model", base_revision=revision)).base_uri)


def test_a_revision_is_copied_once_and_only_what_a_model_needs(hub: Hub) -> None:
    folder = stage("main")
    assert {path.name for path in folder.iterdir()} == STAGED | {attempts.MANIFEST}
    for name in STAGED:
        assert (folder / name).read_bytes() == FILES[name]
        assert attempts.read(str(folder)).files[name]["sha256"] == hashlib.sha256(FILES[name]).hexdigest()
    asked = len(hub.requests)
    assert stage() == folder
    assert len(hub.requests) == asked
    assert [path.name for path in folder.parent.iterdir()] == ["files"]


OTHER_FILES = {
    "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
    "chat_template.jinja": b"{{ messages }}",
    "configuration_mine.py": b"class Mine: ...",
    "LICENSE": b"terms",
    "preprocessor_config.json": b"{}",
}


def test_what_the_merged_model_is_to_carry_is_copied_too(hub: Hub) -> None:
    stale = {
        "consolidated.safetensors": WEIGHTS,
        "onnx/model.onnx": b"x",
        "tests/test_a.py": b"x",
        "training_args.bin": b"x",
    }
    hub.files.update(OTHER_FILES | stale)
    folder = stage()
    assert set(attempts.read(str(folder)).files) == STAGED | set(OTHER_FILES)
    assert all((folder / name).read_bytes() == content for name, content in OTHER_FILES.items())


def test_a_base_that_an_earlier_version_staged_gets_what_it_lacks(hub: Hub) -> None:
    folder = stage()
    work = attempts.read(str(folder))
    hub.files.update(OTHER_FILES)
    assert stage() == folder and not (folder / "LICENSE").exists()  # as of this version it is whole
    attempts.finish(str(folder), {name: work.info[name] for name in ("base_model", "revision")}, work.files)
    hub.requests.clear()
    assert stage() == folder and set(attempts.read(str(folder)).files) == STAGED | set(OTHER_FILES)
    assert not any(name.endswith(".safetensors") for method, name, _ in hub.requests if method == "GET")


def test_files_come_several_at_a_time(hub: Hub) -> None:
    hub.meeting = threading.Barrier(2)  # each of the two shards is sent when another large file is asked for, too
    stage()
    shards = [name for method, name, _ in hub.requests if method == "GET" and name.endswith(".safetensors")]
    assert len(shards) == len(set(shards)) == 2  # one after another, the first would be asked for again


def test_a_cut_connection_is_taken_up_where_it_was_cut(hub: Hub) -> None:
    cut = "model-00001-of-00002.safetensors"
    hub.broken.add(cut)
    assert (stage() / cut).read_bytes() == WEIGHTS
    ranges = [asked for method, name, asked in hub.requests if method == "GET" and name == cut]
    assert ranges[0] == "" and f"bytes={len(WEIGHTS) // 2}-" in ranges[1]


def test_an_attempt_that_failed_is_taken_up_file_by_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    second = "model-00002-of-00002.safetensors"
    monkeypatch.setattr(copying, "TRIES", 1)
    monkeypatch.setattr(copying, "PARALLEL", 1)
    hub.refused.add(second)
    with pytest.raises(InputError, match=f"{second} could not be copied: .*; run again, finished files are kept"):
        stage()
    folder = Path(base_model.storage.root()) / "bases" / "org--model" / COMMIT / "files"
    assert not (folder / attempts.MANIFEST).exists() and not (folder / second).exists()
    hub.refused.clear()
    hub.requests.clear()
    assert stage() == folder
    assert {name for method, name, _ in hub.requests if method == "GET"} == {second}


def test_other_bytes_than_the_hub_lists_are_refused(hub: Hub) -> None:
    hub.wrong.add("model-00002-of-00002.safetensors")
    with pytest.raises(
        InputError, match=r"model-00002-of-00002.safetensors is not what the hub lists: sha256:\w+, not"
    ):
        stage()
    kept = [path.name for path in Path(base_model.storage.root()).rglob("*") if path.is_file()]
    assert "model-00002-of-00002.safetensors" not in kept and attempts.MANIFEST not in kept


def test_a_small_file_is_checked_too(hub: Hub) -> None:
    hub.wrong.add("config.json")
    with pytest.raises(InputError, match=r"config.json is not what the hub lists: git:\w+, not git:"):
        stage()


@pytest.mark.parametrize(
    ("change", "revision", "message"),
    [
        ({"gated": True}, "", "base model org/model: it is gated: ask for access on its page on the hub"),
        ({}, "nonsense", "base model org/model: the hub has no revision nonsense of it; give a branch, a tag or"),
        (
            {"files": {"config.json": b"{}", "pytorch_model.bin": b""}},
            "",
            "base model org/model: no *.safetensors there, only pytorch_model.bin; other formats can run code and are"
            " refused",
        ),
        ({"files": {"model.safetensors": b""}}, "", "base model org/model: no config.json there"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(
    hub: Hub, change: dict[str, object], revision: str, message: str
) -> None:
    for field in dataclasses.fields(hub):
        if field.name in change:
            setattr(hub, field.name, change[field.name])
    with pytest.raises(InputError) as error:
        stage(revision)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert not list(Path(base_model.storage.root()).rglob("*"))


def test_the_commit_of_a_branch_is_found(hub: Hub) -> None:
    assert base_model.resolve("org/model", "main") == COMMIT


def test_a_folder_is_used_where_it_lies(place: Path, tiny_model: Path) -> None:
    revision = base_model.resolve(str(tiny_model), "")
    config = StageConfig(base_model=str(tiny_model), base_revision=revision)
    assert task.run(config).base_uri == str(tiny_model)
    with pytest.raises(InputError, match="its files are not those of revision sha256-0"):
        task.run(StageConfig(base_model=str(tiny_model), base_revision="sha256-0"))
