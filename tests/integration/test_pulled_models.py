"""Pull, copies to other places, and gc against an MLflow server with logins and a real S3."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, references
from qlora_pipelines.components.core.store import attempts, connections, storage
from qlora_pipelines.components.core.store.addresses import locate
from tests.integration import servers
from tests.integration.registered import Make, MakeProxy, qlora, register, versions

pytestmark = pytest.mark.usefixtures("fresh_servers")


def test_a_pull_through_cut_connections_is_whole(
    make_merged: Make, own_store: str, name: str, proxy: MakeProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, key = make_merged(own_store, "one")
    register(name, (uri, key))
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", between.address)
    between.cut_after(50_000, times=4)
    result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    assert result.exit_code == 0, result.output
    assert between.cuts == 4


def test_a_pull_that_is_refused_half_way_is_taken_up(
    make_merged: Make, own_store: str, name: str, proxy: MakeProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(name, make_merged(own_store, "one"))
    between = proxy(os.environ["AWS_ENDPOINT_URL_S3"])
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", between.address)
    monkeypatch.setattr(storage, "PART", 20_000)
    real = storage.stream
    asked = itertools.count(1)  # of several threads, each gets a number of its own

    def read(uri: str, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        if next(asked) == 12:
            between.refuse()
        return real(uri, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "stream", read)
        result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    assert result.exit_code == 1 and "error: s3://" in result.output and not (tmp_path / "here").exists()
    between.refuse(False)
    again: list[int] = []

    def counted(uri: str, start: int, size: int) -> Iterator[tuple[int, bytes]]:
        again.append(start)
        return real(uri, start, size)

    monkeypatch.setattr(storage, "stream", counted)
    result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    assert result.exit_code == 0, result.output
    parts = sum(-(-file["size"] // 20_000) for file in manifest.read(versions(name)[0].source).files.values())
    assert len(again) < parts


def test_tampering_with_the_bucket_is_found_by_name(
    make_merged: Make, own_store: str, name: str, tmp_path: Path
) -> None:
    uri, _ = make_merged(own_store, "one")
    register(name, (uri, "one"))
    found = 0
    for file in ("model/model.safetensors", "model/tokenizer.json", "MLmodel", "README.md", manifest.MANIFEST):
        place = f"{uri}/{file}"
        content = storage.read_bytes(place)
        for altered in (content[:-1] + bytes([content[-1] ^ 1]), content[:-1], None):
            storage.delete(place) if altered is None else storage.write_bytes(place, altered)
            result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / f"here-{found}")
            assert result.exit_code == 1 and file in result.output, result.output
            found += 1
        storage.write_bytes(place, content)
    print(f"\n{found} tampered buckets, {found} pulls refused by name")
    assert qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here").exit_code == 0


@pytest.mark.skipif(not servers.has_ceph(), reason="only Ceph checks rights here")
def test_no_right_to_read_the_bucket_says_what_is_needed(
    make_merged: Make, own_store: str, name: str, tmp_path: Path
) -> None:
    uri, _ = make_merged(own_store, "one")
    register(name, (uri, "one"))
    bucket, key = locate(uri).bucket, locate(uri).key
    client = connections.client(os.environ["AWS_ENDPOINT_URL_S3"])
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/{key}/*"}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    try:
        result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    finally:
        client.delete_bucket_policy(Bucket=bucket)
    assert result.exit_code == 1
    assert "access denied (403); " in result.output and "a login to MLflow does not give them" in result.output
    assert f"need s3:GetObject and s3:ListBucket on s3://{bucket}" in result.output


def test_a_store_of_registered_models_on_the_same_endpoint_is_copied_to_within_the_server(
    make_merged: Make, own_store: str, s3_store: str, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("QLORA_MODELS_STORE", f"{s3_store}/models-{name}")
    uri, _ = make_merged(own_store, "one")
    register(name, (uri, "one"))
    assert "copied within the server" in capsys.readouterr().out
    assert versions(name)[0].source == f"{s3_store}/models-{name}/one"
    storage.remove(uri, "manifest.json")  # nothing of it is needed any more
    assert qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here").exit_code == 0


def test_a_local_store_is_streamed_to_a_store_of_registered_models(
    make_merged: Make, s3_store: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_STORE", str(tmp_path / "store"))
    merged = make_merged(str(tmp_path / "store"), "one")
    with pytest.raises(InputError, match="an MLflow server cannot read the local store"):
        register(name, merged)
    monkeypatch.setenv("QLORA_MODELS_STORE", f"{s3_store}/models-{name}")
    assert register(name, merged).outcome == "champion"
    assert versions(name)[0].source == f"{s3_store}/models-{name}/one"
    assert qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here").exit_code == 0


def test_a_store_of_registered_models_on_another_endpoint_is_streamed_to(
    make_merged: Make, own_store: str, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import boto3

    pytest.importorskip("moto")
    uri, _ = make_merged(own_store, "one")
    with servers.moto() as other:
        boto3.client("s3", endpoint_url=other).create_bucket(Bucket="registry")
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", other)
        with pytest.raises(InputError, match=r"is another than the store's: set QLORA_MODELS_STORE to an s3:// prefix"):
            register(name, (uri, "one"))
        monkeypatch.setenv("QLORA_MODELS_STORE", "s3://registry/models")
        listing = f"{own_store}/listings/d.json"
        storage.write_bytes(listing, json.dumps({"train": {"uri": "s3://data/rows", "files": []}}).encode())
        evidence = {"listing_uri": listing, "data_digest": "d"}
        register(name, (uri, "one"), evidence=evidence)
        assert register(name, (uri, "one"), evidence=evidence).outcome == "champion"
        run = mlflow_client.connect().get_run(versions(name)[0].run_id)
        assert len(run.inputs.dataset_inputs) == 1
        assert f"streamed in parts to {other}" in capsys.readouterr().out
        assert versions(name)[0].source == "s3://registry/models/one"
        # A reader has MLflow's endpoint alone.
        del os.environ["AWS_ENDPOINT_URL_S3"]
        result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
        assert result.exit_code == 0, result.output


def test_gc_on_s3_removes_what_no_version_refers_to(make_merged: Make, own_store: str, name: str) -> None:
    kept, _ = make_merged(own_store, "one")
    register(name, (kept, "one"))
    unwanted, _ = make_merged(own_store, "unwanted")
    for path in ("checkpoints/t-one/a/x", "checkpoints/other/a/x", "listings/d-one.json", "listings/d-other.json"):
        storage.write_bytes(f"{own_store}/{path}", b"content")
    with attempts.attempt(f"{own_store}/adapters/t-one") as attempt:
        attempt.commit({})
    registry = references.registry_id(mlflow_client.connect())
    named = [*references.pieces(training_key="other", merge_key="unwanted"), "listings/d-other.json"]
    references.write(registry, [own_store], "unwanted", named)
    found = json.loads(qlora("gc", "--dry-run", "--json").output)["pieces"]
    assert [piece["uri"] for piece in found if not piece["kept"]] == [f"{own_store}/checkpoints/t-one"]
    gone = {f"{own_store}/checkpoints/t-one", f"{own_store}/listings/d-other.json", unwanted}
    listed = json.loads(qlora("gc", "--dry-run", "--json", "--days", "0").output)["pieces"]
    assert {piece["uri"] for piece in listed if not piece["kept"]} == gone
    result = qlora("gc", "--days", "0")
    assert result.exit_code == 0 and result.output.endswith("removed\n"), result.output
    left = storage.sizes(own_store)
    assert not any(f"{own_store}/{path}".startswith(tuple(gone)) for path in left)
    assert "checkpoints/other/a/x" in left and "listings/d-one.json" in left
    assert any(f"{own_store}/{path}".startswith(kept) for path in left)
