"""Names from listings, manifests and hubs stay in the folder that they are copied to; one test for each download."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.data import hub, listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import attempts, connections, copies, local_files, storage
from qlora_pipelines.components.core.store.addresses import locate
from qlora_pipelines.components.stage_base_model import task as stage
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from tests.components.stage_base_model.hub_server import Hub, serve
from tests.meddling import Meddler

LEAVING = ["../x", "a/../../x", "/abs/x", "a//x", "a/./x", ".", "..", "", "a/", "a\\..\\x", "a\nb", "a\0b", "\udcff"]


@pytest.mark.parametrize("name", LEAVING, ids=repr)
def test_a_name_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no name for a file below a folder"):
        local_files.join_local(tmp_path, name)


@pytest.mark.parametrize("name", ["a", "a/b.json", "a..b/c", "...", "übung/ä b", "%2e%2e/a", ".hidden"])
def test_any_other_name_is_joined(name: str, tmp_path: Path) -> None:
    assert local_files.join_local(tmp_path, name) == tmp_path / name


def test_a_symlink_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    (tmp_path / "root" / "file").symlink_to(tmp_path / "x")
    for name in ("link/x", "file"):
        with pytest.raises(InputError, match=r"leads out of .* through a symlink"):
            local_files.join_local(tmp_path / "root", name)


def put(between: Meddler, uri: str, key: str) -> None:
    """Writes an object whose key is as given, below an address."""
    place = locate(uri)
    connections.client(between.address).put_object(Bucket=place.bucket, Key=f"{place.key}/{key}", Body=b"x")


def base(uri: str, folder: Path) -> None:
    base_model.fetch(uri, folder)


def base_cache(uri: str, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(base_model.CACHE_VARIABLE, str(folder))
        base_model.fetch(uri, folder)


def base_small_files(uri: str, folder: Path) -> None:
    base_model.small_files(uri, "", folder)


def tokenizer(uri: str, folder: Path) -> None:
    copies.download(uri, folder)


def checkpoint(uri: str, folder: Path) -> None:
    Checkpoints(uri, 1).newest(folder)


def data(uri: str, folder: Path) -> None:
    listing.make(uri)


@pytest.mark.parametrize("key", ["/etc/x", "../../x", "a/../../../x", "\\x"], ids=repr)
@pytest.mark.parametrize("read", [base, base_cache, base_small_files, tokenizer, checkpoint, data])
def test_an_object_that_would_be_written_elsewhere_is_refused(
    read: Callable[[str, Path], None], key: str, between: Meddler, bucket: str, tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        storage.write_bytes(f"{bucket}/folder/{name}", b"{}")
    put(between, f"{bucket}/folder", key)
    with pytest.raises(InputError, match=r"is no name for a file below a folder|cannot be a file"):
        read(f"{bucket}/folder", tmp_path / "a" / "b" / "c")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and not Path("/etc/x").exists()


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x"])
def test_a_manifest_that_names_files_elsewhere_is_refused(
    name: str, bucket: str, s3_place: Path, tmp_path: Path
) -> None:
    """Adapters, champions, merged models and staged bases are read by their manifests."""
    uri = f"{bucket}/work"
    work = attempts.Finished(uri, {}, {name: {"size": 1, "sha256": "0" * 64}})
    storage.write_bytes(f"{uri}/{attempts.MANIFEST}", attempts.manifest(work))
    for read in (lambda folder: copies.fetch_work(attempts.read(uri), folder), lambda folder: base(uri, folder)):
        with pytest.raises(InputError, match="is no name for a file below a folder"):
            read(tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize("commit", ["../../evil", "", "main", "a" * 39, "a" * 40 + "/.."])
def test_a_hub_that_answers_no_commit_places_nothing(commit: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    files = {"config.json": b"{}", "model.safetensors": b"weights"}
    with serve(Hub(files, commit=commit)):
        for read in (
            lambda: stage.run(stage.Config(base_model="org/model")),
            lambda: base_model.resolve("org/model", ""),
            lambda: listing.make("org/model"),
        ):
            with pytest.raises(InputError, match="as commit, which is none"):
                read()
    with pytest.raises(InputError, match="is no commit, and cannot name a folder"):
        base_model.place_in_store("org/model", commit)
    assert not list(place.rglob("*.safetensors"))


@pytest.mark.parametrize("name", ["../../evil.json", "/etc/evil.json"])
def test_a_hub_that_names_files_elsewhere_places_nothing(name: str, place: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", name: b"{}", "data.jsonl": b"{}"}
    with serve(Hub(files)):
        for read in (
            lambda: stage.run(stage.Config(base_model="org/model")),
            lambda: base_model.small_files("org/model", "a" * 40, place / "a" / "b"),
            lambda: listing.make("org/model"),
            lambda: hub.fetch(f"hf://datasets/org/model@{'a' * 40}", name, "git:0", place / "a" / "b"),
        ):
            with pytest.raises(InputError, match="is no name for a file below a folder"):
                read()
    assert not list(place.rglob("evil.json")) and not Path("/etc/evil.json").exists()


def test_a_listing_of_data_is_read_as_it_is_written(place: Path) -> None:
    """What a listing names is read, not joined to a folder: so only files of the data's own folder are."""
    (place / "secret.jsonl").write_text('{"text": "x"}\n')
    (place / "data").mkdir()
    entry = ["../secret.jsonl", 14, f"sha256:{storage.sha256_file(place / 'secret.jsonl')}"]
    uri = place / "listing.json"
    uri.write_text(json.dumps({"train": {"uri": str(place / "data"), "files": [entry]}}))
    with pytest.raises(InputError, match="changed since the run was planned"):
        listing.load(str(uri))
