"""Registration, pull and gc against an MLflow server with logins and a real S3."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from components.core import registered, storage, tracking, transfer
from components.core.config import RegisterConfig
from components.core.errors import InputError
from components.register_model import task
from pipelines.cli import main
from tests.components.register_model.test_task import Killed, kill_after
from tests.conftest import Merged
from tests.integration import servers
from tests.integration.servers import Proxy
from tests.pipelines.test_registered_commands import write_keys

Make = Callable[[str, str], Merged]
MakeProxy = Callable[[str], Proxy]
QLORA = str(Path(sys.executable).parent / "qlora")


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def register(name: str, merged: Merged, **others: Any) -> task.Result:
    uri, key = merged
    given = {"evidence": {"training_key": f"t-{key}", "data_digest": f"d-{key}", "loss": "0.5"}} | others
    return task.run(RegisterConfig(model_name=name), merged_uri=uri, merge_key=key, **given)


def aliases(name: str) -> dict[str, str]:
    return {alias: str(to) for alias, to in tracking.client().get_registered_model(name).aliases.items()}


def versions(name: str) -> list[Any]:
    return list(tracking.client().search_model_versions(f"name = '{name}'"))


@pytest.fixture
def name() -> str:
    return f"tickets-{uuid.uuid4().hex[:8]}"


@pytest.fixture(autouse=True)
def _servers(mlflow_server: str, own_store: str) -> Iterator[None]:
    """Each test starts from the session's endpoints, also after one that changed them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL_S3"])
        patch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        storage._s3.cache_clear()
        yield
    storage._s3.cache_clear()


STRANGER = """
import sys, mlflow
pipeline = mlflow.transformers.load_model(sys.argv[1])
print(pipeline([{"role": "user", "content": "the cat sat on mat"}], max_new_tokens=4)[0]["generated_text"][-1]["role"])
assert "components.core" not in sys.modules
"""


def test_mlflow_alone_loads_it_from_the_server_and_from_the_pulled_folder(
    make_merged: Make, own_store: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    merged = make_merged(own_store, "one")
    assert register(name, merged) == ("1", f"models:/{name}@champion", "champion")
    assert versions(name)[0].source == merged[0]
    result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here", "--public-key", public, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["signature"].startswith("signed by the key")
    environment = os.environ | {"MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL_S3"]}
    for address in (f"models:/{name}@champion", str(tmp_path / "here")):
        done = subprocess.run(
            [sys.executable, "-c", STRANGER, address],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip().endswith("assistant")
    service = yaml.safe_load(qlora("pull", f"models:/{name}@champion", "--kserve").output)
    assert service["spec"]["predictor"]["model"]["storageUri"] == f"{merged[0]}/model"


def test_six_at_once_make_one_version(make_merged: Make, own_store: str, name: str) -> None:
    rounds = 3
    for number in range(rounds):
        merged, each = make_merged(own_store, f"race-{number}"), f"{name}-{number}"
        with ThreadPoolExecutor(6) as pool:
            results = set(pool.map(lambda _, each=each, merged=merged: register(each, merged), range(6)))
        (version,) = versions(each)
        assert results == {task.Result(str(version.version), f"models:/{each}@champion", "champion")}
        assert aliases(each) == {"champion": str(version.version), "candidate": str(version.version)}
        whole = registered.read(version.source, version.tags[registered.MANIFEST_TAG])
        transfer.check_files(whole.uri, whole.files, "registered model", "")
    print(f"\n{rounds} races of 6 registrations: {rounds} versions")


def test_killed_after_any_step_and_run_again_it_is_one_version(make_merged: Make, own_store: str, name: str) -> None:
    kills = 0
    for count in range(1, 100, 3):
        merged, each = make_merged(own_store, f"killed-{count}"), f"{name}-{count}"
        with pytest.MonkeyPatch.context() as patch:
            kill_after(count, patch)
            try:
                register(each, merged)
                break
            except Killed:
                kills += 1
        assert register(each, merged).outcome == "champion" and len(versions(each)) == 1
        assert aliases(each) == dict.fromkeys(("champion", "candidate"), str(versions(each)[0].version))
        assert registered.read(merged[0], versions(each)[0].tags[registered.MANIFEST_TAG])
    print(f"\nkilled after {kills} different writes, run again: one version each time")
    assert kills > 5


def test_mlflow_down_in_the_middle_is_one_line_and_running_again_goes_on(
    make_merged: Make, own_store: str, name: str, proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = proxy(os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
    merged = make_merged(own_store, "one")
    real = task._complete

    def down(*given: Any, **named: Any) -> Any:
        between.refuse()
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(task, "_complete", down)
        with pytest.raises(InputError, match=f"registering {name}: MLflow.*run again, what is done is kept"):
            register(name, merged)
    between.refuse(False)
    assert register(name, merged).outcome == "champion"
    assert len(versions(name)) == 1


def test_connections_cut_while_registering_leave_one_version(
    make_merged: Make, own_store: str, name: str, proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = proxy(os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    merged = make_merged(own_store, "one")
    for after in (400, 800, 1600):  # bytes: within a question, and within an answer
        between.cut_after(after, times=2)
        with contextlib.suppress(InputError):
            register(name, merged)
    between.cut_after(0, times=0)
    assert register(name, merged).outcome == "champion"
    assert len(versions(name)) == 1 and between.cuts >= 3
    print(f"\n{between.cuts} connections cut while registering: one version")


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
    monkeypatch.setattr(transfer, "PART", 20_000)
    real = transfer.read_range
    asked = 0

    def read(uri: str, start: int, size: int) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 12:
            between.refuse()
        return real(uri, start, size)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "read_range", read)
        result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    assert result.exit_code == 1 and "error: s3://" in result.output and not (tmp_path / "here").exists()
    between.refuse(False)
    again: list[int] = []

    def counted(uri: str, start: int, size: int) -> bytes:
        again.append(start)
        return real(uri, start, size)

    monkeypatch.setattr(transfer, "read_range", counted)
    result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    assert result.exit_code == 0, result.output
    parts = sum(-(-file["size"] // 20_000) for file in registered.read(versions(name)[0].source).files.values())
    assert len(again) < parts


def test_tampering_with_the_bucket_is_found_by_name(
    make_merged: Make, own_store: str, name: str, tmp_path: Path
) -> None:
    uri, _ = make_merged(own_store, "one")
    register(name, (uri, "one"))
    found = 0
    for file in ("model/model.safetensors", "model/tokenizer.json", "MLmodel", "README.md", registered.MANIFEST):
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
    bucket, key = storage._split(uri)
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/{key}/*"}
    storage._s3().put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]}))
    try:
        result = qlora("pull", f"models:/{name}@champion", "--to", tmp_path / "here")
    finally:
        storage._s3().delete_bucket_policy(Bucket=bucket)
    assert result.exit_code == 1
    assert "access denied (403); a version registered by reference is read from the bucket itself" in result.output
    assert f"need s3:GetObject and s3:ListBucket on s3://{bucket}" in result.output


def test_a_login_without_rights_is_told_so(
    make_merged: Make, own_store: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import get_app_client

    register(name, make_merged(own_store, "one"))
    auth = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    reader = f"reader-{uuid.uuid4().hex[:8]}"
    auth.create_user(username=reader, password="another-long-password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", reader)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-long-password")
    with pytest.raises(InputError, match="MLflow gives this login no permission for it"):
        register(name, make_merged(own_store, "two"))
    assert "no permission" in qlora("promote", f"models:/{name}/1").output or aliases(name)["champion"] == "1"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refuses this login: check MLFLOW_TRACKING_USERNAME"):
        register(name, make_merged(own_store, "three"))


def test_a_store_of_registered_models_on_the_same_endpoint_is_copied_to_within_the_server(
    make_merged: Make, own_store: str, s3_store: str, name: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("QLORA_MODELS_STORE", f"{s3_store}/models-{name}")
    uri, _ = make_merged(own_store, "one")
    register(name, (uri, "one"))
    assert "copied within the server" in capsys.readouterr().out
    assert versions(name)[0].source == f"{s3_store}/models-{name}/one"
    transfer.remove(uri, "manifest.json")  # nothing of it is needed any more
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
    own = os.environ["AWS_ENDPOINT_URL_S3"]
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
        os.environ["AWS_ENDPOINT_URL_S3"] = own  # again, as another process would
        storage._s3.cache_clear()
        assert register(name, (uri, "one"), evidence=evidence).outcome == "champion"
        run = tracking.client().get_run(versions(name)[0].run_id)
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
    assert json.loads(qlora("gc", "--dry-run", "--json").output)["pieces"][0]["uri"] == f"{own_store}/checkpoints/t-one"
    gone = {f"{own_store}/checkpoints/t-one", f"{own_store}/listings/d-other.json", unwanted}
    listed = json.loads(qlora("gc", "--dry-run", "--json", "--days", "0").output)["pieces"]
    assert {piece["uri"] for piece in listed} == gone
    result = qlora("gc", "--days", "0")
    assert result.exit_code == 0 and result.output.endswith("removed\n"), result.output
    left = storage.sizes(own_store)
    assert not any(f"{own_store}/{path}".startswith(tuple(gone)) for path in left)
    assert "checkpoints/other/a/x" in left and "listings/d-one.json" in left
    assert any(f"{own_store}/{path}".startswith(kept) for path in left)


def test_no_secret_shows_anywhere(
    make_merged: Make, own_store: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plants secrets, runs the commands, and looks for them in everything that they write."""
    private, public = write_keys(tmp_path, "ours")
    planted = {
        "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        "MLFLOW_TRACKING_PASSWORD": os.environ["MLFLOW_TRACKING_PASSWORD"],
        "HF_TOKEN": "hf_planted_token",
        "key": "".join(private.read_text().splitlines()[1:2]),
    }
    environment = os.environ | {"HF_TOKEN": planted["HF_TOKEN"], "QLORA_SIGNING_KEY": str(private)}
    uri, key = make_merged(own_store, "one")
    report = tmp_path / "plan.html"
    report.write_text("a report")
    step = ["step", "register_model", "--merged-uri", uri, "--merge-key", key, "--model-name", name]
    commands = [
        [*step, "--reports", json.dumps({"1-plan": str(report)}), "--evidence", json.dumps({"base_model": "org/b"})],
        ["pull", f"models:/{name}@champion", "--to", str(tmp_path / "here"), "--public-key", str(public), "--json"],
        ["pull", f"models:/{name}@champion", "--kserve"],
        ["pull", f"models:/{name}@nobody", "--to", str(tmp_path / "there")],
        ["promote", f"models:/{name}/1"],
        ["gc", "--dry-run"],
        ["compile", str(tmp_path / "pipeline.yaml")],
    ]
    said = ""
    for command in commands:
        done = subprocess.run([QLORA, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == (1 if command[1].endswith("@nobody") else 0), done.stdout + done.stderr
        said += done.stdout + done.stderr
    version = versions(name)[0]
    run = tracking.client().get_run(version.run_id)
    written = [said, str(version), str(run.to_dictionary()), (tmp_path / "pipeline.yaml").read_text()]
    written += [path.read_bytes().decode("latin-1") for path in (tmp_path / "here").rglob("*") if path.is_file()]
    written += [storage.read_bytes(f"{own_store}/{path}").decode("latin-1") for path in storage.sizes(own_store)]
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL_S3"])
    written += [hashlib.sha256().hexdigest()]
    for what, secret in planted.items():
        assert len(secret) > 10 and not any(secret in text for text in written), what
    print(f"\n{len(planted)} planted secrets, {len(written)} texts and files without them")
