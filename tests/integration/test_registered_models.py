"""Registration against an MLflow server with logins and a real S3."""

import contextlib
import json
import os
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import integrity, manifest, mlflow_client
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import task
from tests.components.register_model.registering import Killed, kill_after
from tests.integration.registered import (
    QLORA,
    STRANGER,
    Make,
    MakeProxy,
    aliases,
    check_hidden,
    plant,
    qlora,
    register,
    versions,
)
from tests.pipelines.cli.registered import write_keys

pytestmark = pytest.mark.usefixtures("fresh_servers")


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


def test_what_others_write_into_the_bucket_since_the_merge_is_not_registered(
    make_merged: Make, own_store: str, name: str, tmp_path: Path
) -> None:
    uri, key = make_merged(own_store, "one")
    digest = integrity.digest(attempts.read(uri))
    weights = storage.read_bytes(f"{uri}/model/model.safetensors")
    other = weights[:-1] + bytes([weights[-1] ^ 1])
    storage.write_bytes(f"{uri}/model/model.safetensors", other)
    with pytest.raises(InputError, match=r"model/model.safetensors was altered; run the merge again"):
        register(name, (uri, key), merged_digest=digest)
    work = attempts.read(uri)
    attempts.finish(uri, work.info, work.files | {"model/model.safetensors": manifest.entry(other)})
    with pytest.raises(InputError, match=r"manifest.json was altered: its sha256 is"):
        register(name, (uri, key), merged_digest=digest)
    attempts.finish(uri, work.info, work.files)
    storage.write_bytes(f"{uri}/model/model.safetensors", weights)
    storage.write_bytes(f"{uri}/model/modeling.py", b"evil")
    message = r"model/modeling.py is not in the manifest; remove it and run again"
    with pytest.raises(InputError, match=message):
        register(name, (uri, key), merged_digest=digest)
    verified = integrity.read(uri, digest, "merged model")
    with pytest.raises(InputError, match=message), integrity.verified_folder(verified, tmp_path, "merged model"):
        pass
    assert mlflow_client.connect().search_registered_models(f"name = '{name}'") == []
    storage.delete(f"{uri}/model/modeling.py")
    assert register(name, (uri, key), merged_digest=digest).outcome == "champion"
    with integrity.verified_folder(verified, tmp_path / "copy", "merged model", manifest.is_added) as held:
        assert (held.folder / "model" / "model.safetensors").read_bytes() == weights
        assert set(storage.sizes(str(held.folder))) == set(verified.files)


def test_six_at_once_make_one_version(make_merged: Make, own_store: str, name: str) -> None:
    rounds = 3
    for number in range(rounds):
        merged, each = make_merged(own_store, f"race-{number}"), f"{name}-{number}"
        with ThreadPoolExecutor(6) as pool:
            results = set(pool.map(lambda _, each=each, merged=merged: register(each, merged), range(6)))
        (version,) = versions(each)
        assert results == {task.Result(str(version.version), f"models:/{each}@champion", "champion")}
        assert aliases(each) == {"champion": str(version.version), "candidate": str(version.version)}
        whole = manifest.read(version.source, version.tags[manifest.MANIFEST_TAG])
        attempts.check_files(whole.uri, whole.files, "registered model", "")
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
        assert manifest.read(merged[0], versions(each)[0].tags[manifest.MANIFEST_TAG])
    print(f"\nkilled after {kills} different writes, run again: one version each time")
    assert kills > 5


def test_mlflow_down_in_the_middle_is_one_line_and_running_again_goes_on(
    make_merged: Make, own_store: str, name: str, proxy: MakeProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = proxy(os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", between.address)
    merged = make_merged(own_store, "one")
    real = task._write_files

    def down(*given: Any, **named: Any) -> Any:
        between.refuse()
        return real(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(task, "_write_files", down)
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


def test_a_login_without_rights_is_told_so(
    make_merged: Make, own_store: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import get_app_client

    register(name, make_merged(own_store, "one"))
    register(name, make_merged(own_store, "another"))
    before = aliases(name)
    auth = get_app_client("basic-auth", tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    reader = f"reader-{uuid.uuid4().hex[:8]}"
    auth.create_user(username=reader, password="another-long-password")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", reader)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another-long-password")
    with pytest.raises(InputError, match="MLflow gives this login no permission for it"):
        register(name, make_merged(own_store, "two"))
    result = qlora("promote", f"models:/{name}/2")
    assert result.exit_code == 1 and "MLflow gives this login no permission for it" in result.output, result.output
    assert aliases(name) == before == {"champion": "1", "candidate": "2"}
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refuses this login: check MLFLOW_TRACKING_USERNAME"):
        register(name, make_merged(own_store, "three"))


def test_no_secret_shows_anywhere(make_merged: Make, own_store: str, s3_store: str, name: str, tmp_path: Path) -> None:
    """Plants secrets, runs the commands, and looks for them in everything that they write."""
    private, public = write_keys(tmp_path, "ours")
    planted = plant(private)
    environment = os.environ | {"HF_TOKEN": planted["HF_TOKEN"], "QLORA_SIGNING_KEY": str(private)}
    uri, key = make_merged(own_store, "one")
    report = tmp_path / "plan.html"
    report.write_text("a report")
    digest = integrity.digest(attempts.read(uri))
    step = ["step", "register_model", "--merged-uri", uri, "--merged-digest", digest]
    step += ["--merge-key", key, "--model-name", name]
    commands = [
        [*step, "--reports", f"1-plan={report}", "--evidence", "base_model=org/b"],
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
    said += (tmp_path / "pipeline.yaml").read_text()
    texts = check_hidden(planted, name, [tmp_path / "here"], [own_store, f"{s3_store}/mlflow"], said)
    print(f"\n{len(planted)} planted secrets, {texts} texts and files without them")
