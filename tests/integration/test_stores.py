"""The store on each cloud: what every step and command does with it, on a server of that cloud."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client, references, sources
from qlora_pipelines.components.core.store import storage
from tests.integration.conftest import RemoteStore
from tests.integration.registered import Make, qlora, register, versions


def test_files_are_written_listed_read_and_removed(remote_store: RemoteStore, tmp_path: Path) -> None:
    uri = remote_store.uri
    storage.check_writable(uri)
    large = tmp_path / "folder" / "a" / "large"
    large.parent.mkdir(parents=True)
    large.write_bytes(b"0123456789" * 1_000_000)
    (tmp_path / "folder" / "ü b%2e").write_bytes(b"")
    storage.upload(tmp_path / "folder", uri)
    storage.write_bytes(f"{uri}/small", b"hello")
    assert storage.sizes(uri) == {"a/large": 10_000_000, "ü b%2e": 0, "small": 5}
    assert storage.read_range(f"{uri}/a/large", 5_000_003, 4) == b"3456"
    assert storage.sha256(f"{uri}/a/large", 10_000_000) == storage.sha256_file(large)
    assert [entry.path for entry in storage.listing(uri)] == sorted(["a/large", "ü b%2e", "small"])
    with pytest.raises(InputError, match="no such object"):
        storage.read_bytes(f"{uri}/none")
    storage.delete(f"{uri}/small")
    storage.delete(f"{uri}/small")  # none there is no error
    storage.remove(uri, first="small")
    assert storage.sizes(uri) == {}


def test_what_was_written_by_one_process_is_read_by_another(remote_store: RemoteStore) -> None:
    storage.write_bytes(f"{remote_store.uri}/a", b"hello")
    code = (
        "import sys; from qlora_pipelines.components.core.store import storage; print(storage.read_bytes(sys.argv[1]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, f"{remote_store.uri}/a"], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "b'hello'"


def test_a_version_is_registered_pulled_and_kept_by_gc(
    remote_store: RemoteStore, make_merged: Make, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("QLORA_MODELS_STORE", "")
    merged, unwanted = make_merged(remote_store.uri, "one"), make_merged(remote_store.uri, "two")
    assert register(name, merged).outcome == "champion"
    [version] = versions(name)
    assert version.source == sources.source_uri(merged[0])
    assert version.source.startswith(("s3://", "gs://", "wasbs://"))
    assert register(name, merged) == ("1", f"models:/{name}@champion", "champion")
    pulled = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here", "--json")
    assert pulled.exit_code == 0, pulled.output
    assert (tmp_path / "here" / "model" / "config.json").exists()
    left = json.loads(qlora("gc", "--days", "0", "--json").output)["pieces"]
    assert [piece["uri"] for piece in left] == [unwanted[0]] and "no record" in left[0]["kept"]
    registry = references.registry_id(mlflow_client.connect())
    references.write(registry, [remote_store.uri], "two", references.pieces(training_key="t-two", merge_key="two"))
    gone = qlora("gc", "--days", "0", "--json")
    assert gone.exit_code == 0, gone.output
    assert [piece["kept"] for piece in json.loads(gone.output.splitlines()[-1])["pieces"]] == [""]
    assert storage.sizes(merged[0]) and not storage.sizes(unwanted[0])
