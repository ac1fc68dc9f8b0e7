"""What pull copies, verifies and refuses."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from qlora_pipelines.components.core.registry import manifest, mlflow_client
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines.cli import pull
from qlora_pipelines.pipelines.cli.partial import Partial
from tests.pipelines.cli.registered import Make, qlora, refused, register


def test_pull_gives_exactly_the_registered_files_and_says_how_to_serve_them(
    make_merged: Make, store: str, tmp_path: Path
) -> None:
    uri, _ = register(make_merged, store, "one")
    result = qlora("pull", "models:/tickets@champion", "--to", tmp_path / "here")
    assert result.exit_code == 0, result.output
    assert f"vllm serve {tmp_path}/here/model --served-model-name tickets" in result.output
    assert "unsigned" in result.output
    listed = {path.relative_to(uri).as_posix() for path in Path(uri).rglob("*") if path.is_file()}
    here = {path.relative_to(tmp_path / "here").as_posix() for path in (tmp_path / "here").rglob("*") if path.is_file()}
    assert here == listed
    again = qlora("pull", "models:/tickets/1", "--to", tmp_path / "here", "--json")
    assert json.loads(again.output.splitlines()[-1])["copied"] is False
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".here")] == []
    (tmp_path / "here" / "model" / "modeling.py").touch()
    message = refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert "model/modeling.py is not in the manifest" in message


def test_an_altered_or_missing_file_is_refused_by_name(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    found = 0
    for name in sorted(manifest.read(uri).files):
        path = Path(uri) / name
        content = path.read_bytes()
        for how in ("gone", "altered"):
            if how == "gone":
                path.unlink()
            else:
                path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            message = refused("pull", "models:/tickets@champion", "--to", tmp_path / "here")
            assert name in message and how in message, message
            assert not (tmp_path / "here").exists()
            # Else what has come whole would be kept, and the altered file not be asked for again.
            for partial in tmp_path.glob(".here.*"):
                shutil.rmtree(partial)
            found += 1
        path.write_bytes(content)
    print(f"{found} tampered pulls, {found} refused by name")
    assert qlora("pull", "models:/tickets@champion", "--to", tmp_path / "here").exit_code == 0


def test_who_writes_the_bucket_cannot_write_the_manifest(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    weights = Path(uri) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    files = dict(manifest.read(uri).files)
    files["model/model.safetensors"] = manifest.entry(weights.read_bytes())
    (Path(uri) / manifest.MANIFEST).write_bytes(manifest.make(uri, files).content)
    assert "registered.json was altered" in refused("pull", "models:/tickets@champion", "--to", tmp_path / "here")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "a\\b"])
def test_a_manifest_that_names_files_outside_its_folder(
    name: str, make_merged: Make, store: str, tmp_path: Path
) -> None:
    uri, _ = register(make_merged, store, "one")
    evil = manifest.make(uri, {name: manifest.entry(b"x")})
    (Path(uri) / manifest.MANIFEST).write_bytes(evil.content)
    mlflow_client.connect().set_model_version_tag("tickets", "1", manifest.MANIFEST_TAG, evil.sha256)
    assert "which is no path below its folder" in refused("pull", "models:/tickets/1", "--to", tmp_path / "here")


def test_a_pull_that_was_cut_short_is_taken_up_where_it_ended(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = register(make_merged, store, "one")
    monkeypatch.setattr(storage, "PART", 20_000)
    asked: list[tuple[str, int]] = []
    real, lock = storage.read_range, threading.Lock()

    def cut(after: int) -> Callable[..., bytes]:
        def read(uri: str, start: int, size: int) -> bytes:
            with lock:
                if size == 20_000:
                    asked.append((uri, start))
                if len(asked) > after:
                    raise KeyboardInterrupt
            return real(uri, start, size)

        return read

    version = manifest.read(uri)
    total = sum(file["size"] for file in version.files.values())
    monkeypatch.setattr(storage, "read_range", cut(after=5))
    with pytest.raises(KeyboardInterrupt):
        pull.copy(version, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    monkeypatch.setattr(storage, "read_range", real)
    counted: list[int] = []
    fetched: list[int] = []
    monkeypatch.setattr(storage, "read_range", lambda *given: fetched.append(given[2]) or real(*given))
    assert pull.copy(version, tmp_path / "here", counted.append)
    assert sum(counted) == total and sum(fetched) < total
    assert (tmp_path / "here" / "model" / "model.safetensors").read_bytes() == (
        Path(uri) / "model" / "model.safetensors"
    ).read_bytes()


def test_a_journal_that_is_wrong_is_found_out_and_fixed(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    version = manifest.read(uri)
    with contextlib.closing(Partial(tmp_path / "here", version.sha256)) as partial:
        partial.make(version.files)
        partial.add(("model/model.safetensors", 0))
    assert pull.copy(version, tmp_path / "here")
    assert list(tmp_path.glob(".here.*")) == []


def test_a_folder_that_is_something_else_is_left_alone(make_merged: Make, store: str, tmp_path: Path) -> None:
    register(make_merged, store, "one")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").write_text("mine")
    assert "is there already and is not this version" in refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert (tmp_path / "here" / "mine").read_text() == "mine"


def test_two_pulls_to_one_folder_do_not_meet(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    with contextlib.closing(Partial(tmp_path / "here", manifest.read(uri).sha256)):
        message = refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert "another pull is running there" in message


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/tickets@latest", "MLflow reserves latest"),
        ("models:/tickets@a.b", "an alias has no dots"),
        (
            "models:/tickets@nobody",
            "there is no such version; tickets has @candidate (version 1), @champion (version 1)",
        ),
        ("models:/tickets/9", "there is no such version; tickets has"),
        ("models:/none@champion", "no model none is registered"),
        ("tickets", "give models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_an_address_that_means_no_version(
    uri: str, message: str, make_merged: Make, store: str, tmp_path: Path
) -> None:
    register(make_merged, store, "one")
    assert message in refused("pull", uri, "--to", tmp_path / "here")


@pytest.mark.parametrize(
    ("source", "tags", "message"),
    [
        ("/models/../etc", {}, "may not contain .."),
        ("minio://bucket/x", {}, "minio:// is not read here; give it as s3://bucket/x"),
        ("/nowhere", {}, "/nowhere/registered.json: cannot be read: No such file or directory"),
        ("/nowhere", {manifest.MANIFEST_TAG: ""}, "is not whole: its registration was cut short"),
        ("/nowhere", {"qlora.merge_key": ""}, "was not registered by qlora"),
    ],
)
def test_a_version_of_a_source_that_cannot_be_read(
    source: str, tags: dict[str, str], message: str, place: Path, tmp_path: Path
) -> None:
    client = mlflow_client.connect()
    client.create_registered_model("odd")
    all_tags = {"qlora.merge_key": "k", manifest.MANIFEST_TAG: "0" * 64} | tags
    client.create_model_version("odd", source, tags={name: value for name, value in all_tags.items() if value})
    assert message in refused("pull", "models:/odd/1", "--to", tmp_path / "here")


def test_usage_errors_exit_2(place: Path) -> None:
    assert qlora("pull", "models:/a@champion").exit_code == 2
    for command in ("pull", "promote", "rollback", "gc"):
        assert "Example:" in qlora(command, "--help").output


def test_the_command_to_serve_can_be_pasted(make_merged: Make, store: str, tmp_path: Path) -> None:
    register(make_merged, store, "one")
    result = qlora("pull", "models:/tickets/1", "--to", tmp_path / "my model")
    assert result.output.endswith(f"vllm serve '{tmp_path}/my model/model' --served-model-name tickets\n")


def test_a_disk_that_refuses_is_one_line_and_pulling_again_goes_on(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(make_merged, store, "one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "add", full)
        message = refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert message.endswith("No space left on device; what has arrived is kept, pull again")
    assert qlora("pull", "models:/tickets/1", "--to", tmp_path / "here").exit_code == 0


def test_kserve_wants_an_address_that_a_cluster_can_read(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    assert "a local folder, which KServe cannot read" in refused("pull", "models:/tickets@champion", "--kserve")


def test_the_inference_service_is_one_kubernetes_would_take() -> None:
    service = yaml.safe_load(pull.inference_service("My_Tickets v2", "s3://bucket/merged/key/attempt"))
    assert service["metadata"]["name"] == "my-tickets-v2"
    model = service["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://bucket/merged/key/attempt/model"
    assert model["args"] == ["--model_name=My_Tickets v2"]


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("gs://models/k", "gs://models/k/model"),
        ("az://models/k", "https://acme.blob.core.windows.net/models/k/model"),
        ("abfss://models@other.dfs.core.windows.net/k", "https://other.blob.core.windows.net/models/k/model"),
    ],
)
def test_kserve_gets_each_clouds_address_as_its_initializer_reads_it(
    source: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # https://kserve.github.io/website/docs/model-serving/storage/overview: gs://, s3://, and https:// for Azure
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    service = yaml.safe_load(pull.inference_service("tickets", source))
    assert service["spec"]["predictor"]["model"]["storageUri"] == address


def test_the_commands_say_in_one_line_that_mlflow_is_not_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": "http://u:hidden@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    done = subprocess.run(
        [Path(sys.executable).parent / "qlora", "pull", "models:/a@champion", "--to", place / "x"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: MLflow at http://127.0.0.1:9 does not answer") and "hidden" not in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
