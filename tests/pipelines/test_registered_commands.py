"""pull, promote, rollback and gc on a registry and a store of the test's own: what they do, and what they refuse."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from components.core import pulling, registered, tracking, transfer
from components.core.config import RegisterConfig
from components.register_model import task
from pipelines.cli import main
from tests.conftest import Merged

Make = Callable[[str, str], Merged]


def qlora(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """The one line with which a command refuses."""
    result = qlora(*arguments)
    assert result.exit_code == 1, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.output, result.output
    return lines[0].removeprefix("error: ")


@pytest.fixture
def store(place: Path) -> str:
    return str(place / "store")


def register(make: Make, store: str, key: str, **others: Any) -> tuple[str, task.Result]:
    uri, _ = make(store, key)
    given = {"evidence": {"training_key": f"training-{key}", "data_digest": f"data-{key}"}} | others
    return uri, task.run(RegisterConfig(model_name="tickets"), merged_uri=uri, merge_key=key, **given)


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    paths[0].write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return paths


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


def test_an_altered_or_missing_file_is_refused_by_name(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    found = 0
    for name in sorted(registered.read(uri).files):
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
    files = dict(registered.read(uri).files)
    files["model/model.safetensors"] = registered.entry(weights.read_bytes())
    (Path(uri) / registered.MANIFEST).write_bytes(registered.make(uri, files).content)
    assert "registered.json was altered" in refused("pull", "models:/tickets@champion", "--to", tmp_path / "here")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "a\\b"])
def test_a_manifest_that_names_files_outside_its_folder(
    name: str, make_merged: Make, store: str, tmp_path: Path
) -> None:
    uri, _ = register(make_merged, store, "one")
    evil = registered.make(uri, {name: registered.entry(b"x")})
    (Path(uri) / registered.MANIFEST).write_bytes(evil.content)
    tracking.client().set_model_version_tag("tickets", "1", registered.MANIFEST_TAG, evil.sha256)
    assert "which is no path below its folder" in refused("pull", "models:/tickets/1", "--to", tmp_path / "here")


def test_a_signature_is_demanded_where_a_public_key_is_given(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = write_keys(tmp_path, "ours")
    _, other = write_keys(tmp_path, "theirs")
    uri, _ = register(make_merged, store, "unsigned")
    pull = ["pull", "models:/tickets@champion", "--to", tmp_path / "here", "--public-key"]
    assert f"is unsigned, but the public key {public} is to verify it" in refused(*pull, public)
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    uri, _ = register(make_merged, store, "signed", champion_version="1")
    assert "made with another key" in refused(*pull, other)
    assert "not a public key in PEM" in refused(*pull, private)
    assert "No such file" in refused(*pull, tmp_path / "none.pub")
    result = qlora(*pull, public)
    assert result.exit_code == 0 and "signed by the key" in result.output, result.output
    tags = tracking.client().get_model_version("tickets", "2").tags
    assert len(tags["qlora.signed_by"]) == 64
    # Whoever can write bucket and registry, but has no key.
    weights = Path(uri) / "model" / "config.json"
    weights.write_bytes(weights.read_bytes() + b" ")
    files = registered.read(uri).files | {"model/config.json": registered.entry(weights.read_bytes())}
    forged = registered.make(uri, files)
    (Path(uri) / registered.MANIFEST).write_bytes(forged.content)
    tracking.client().set_model_version_tag("tickets", "2", registered.MANIFEST_TAG, forged.sha256)
    shutil.rmtree(tmp_path / "here")
    assert "model.sig does not sign this model/config.json" in refused(*pull, public)


def test_strangers_can_verify_the_signature_with_model_signing_alone(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import verifying

    private, public = write_keys(tmp_path, "ours")
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(private))
    register(make_merged, store, "one")
    assert qlora("pull", "models:/tickets@champion", "--to", tmp_path / "here").exit_code == 0
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(tmp_path / "here", tmp_path / "here" / "model.sig")
    (tmp_path / "here" / "README.md").write_text("another")
    with pytest.raises(ValueError, match=r"Signature mismatch.*README"):
        verifier.verify(tmp_path / "here", tmp_path / "here" / "model.sig")


@pytest.mark.parametrize("content", ["", "no key", "rsa", "encrypted"])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_registered(
    content: str, make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pem = tmp_path / "bad.pem", serialization.Encoding.PEM
    if content == "rsa":
        key = rsa.generate_private_key(65537, 2048)
        path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    elif content == "encrypted":
        private = ec.generate_private_key(ec.SECP256R1())
        how = serialization.BestAvailableEncryption(b"password")
        path.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, how))
    else:
        path.write_text(content)
    monkeypatch.setenv("QLORA_SIGNING_KEY", str(path))
    with pytest.raises(Exception, match="not a private key in PEM of curve P-256, P-384 or P-521 without password"):
        register(make_merged, store, "one")
    assert tracking.client().search_registered_models() == []


def test_a_pull_that_was_cut_short_is_taken_up_where_it_ended(
    make_merged: Make, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = register(make_merged, store, "one")
    monkeypatch.setattr(transfer, "PART", 20_000)
    asked: list[tuple[str, int]] = []
    real, lock = transfer.read_range, threading.Lock()

    def cut(after: int) -> Callable[..., bytes]:
        def read(uri: str, start: int, size: int) -> bytes:
            with lock:
                if size == 20_000:
                    asked.append((uri, start))
                if len(asked) > after:
                    raise KeyboardInterrupt
            return real(uri, start, size)

        return read

    version = registered.read(uri)
    total = sum(file["size"] for file in version.files.values())
    monkeypatch.setattr(transfer, "read_range", cut(after=5))
    with pytest.raises(KeyboardInterrupt):
        pulling.pull(version, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    monkeypatch.setattr(transfer, "read_range", real)
    counted: list[int] = []
    fetched: list[int] = []
    monkeypatch.setattr(transfer, "read_range", lambda *given: fetched.append(given[2]) or real(*given))
    assert pulling.pull(version, tmp_path / "here", counted.append)
    assert sum(counted) == total and sum(fetched) < total
    assert (tmp_path / "here" / "model" / "model.safetensors").read_bytes() == (
        Path(uri) / "model" / "model.safetensors"
    ).read_bytes()


def test_a_journal_that_lies_is_found_out_and_mended(make_merged: Make, store: str, tmp_path: Path) -> None:
    uri, _ = register(make_merged, store, "one")
    version = registered.read(uri)
    partial = tmp_path / f".here.{version.sha256[:12]}"
    (partial / "model").mkdir(parents=True)
    (partial / "model" / "model.safetensors").write_bytes(b"\0" * version.files["model/model.safetensors"]["size"])
    (partial / ".parts").write_text("0 model/model.safetensors\n")
    assert pulling.pull(version, tmp_path / "here")


def test_a_folder_that_is_something_else_is_left_alone(make_merged: Make, store: str, tmp_path: Path) -> None:
    register(make_merged, store, "one")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").write_text("mine")
    assert "is there already and is not this version" in refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert (tmp_path / "here" / "mine").read_text() == "mine"


def test_two_pulls_to_one_folder_do_not_meet(make_merged: Make, store: str, tmp_path: Path) -> None:
    import fcntl

    uri, _ = register(make_merged, store, "one")
    partial = tmp_path / f".here.{registered.read(uri).sha256[:12]}"
    partial.mkdir()
    with (partial / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        message = refused("pull", "models:/tickets/1", "--to", tmp_path / "here")
    assert "another pull is at work there" in message


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
        ("/nowhere", {}, "/nowhere/registered.json: No such file or directory"),
        ("/nowhere", {registered.MANIFEST_TAG: ""}, "is not whole: its registration was cut short"),
        ("/nowhere", {"qlora.merge_key": ""}, "was not registered by qlora"),
    ],
)
def test_a_version_of_a_source_that_cannot_be_read(
    source: str, tags: dict[str, str], message: str, place: Path, tmp_path: Path
) -> None:
    client = tracking.client()
    client.create_registered_model("odd")
    said = {"qlora.merge_key": "k", registered.MANIFEST_TAG: "0" * 64} | tags
    client.create_model_version("odd", source, tags={name: value for name, value in said.items() if value})
    assert message in refused("pull", "models:/odd/1", "--to", tmp_path / "here")


def test_wrong_use_exits_2(place: Path) -> None:
    assert qlora("pull", "models:/a@champion").exit_code == 2
    for command in ("pull", "promote", "rollback", "gc"):
        assert "Example:" in qlora(command, "--help").output


def test_kserve_wants_an_address_that_a_cluster_can_read(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    assert "KServe reads an s3:// address" in refused("pull", "models:/tickets@champion", "--kserve")


def test_the_inference_service_is_one_kubernetes_would_take() -> None:
    from pipelines.pull_command import inference_service

    service = yaml.safe_load(inference_service("My_Tickets v2", "s3://bucket/merged/key/attempt"))
    assert service["metadata"]["name"] == "my-tickets-v2"
    model = service["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://bucket/merged/key/attempt/model"
    assert model["args"] == ["--model_name=My_Tickets v2"]


def test_promote_and_rollback_move_the_champion_by_hand(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    register(make_merged, store, "two")  # the gate compared with none: it stays candidate
    aliases = lambda: {name: str(to) for name, to in tracking.client().get_registered_model("tickets").aliases.items()}  # noqa: E731
    assert aliases() == {"champion": "1", "candidate": "2"}
    assert "no such version" in refused("rollback", "tickets")
    promoted = qlora("promote", "models:/tickets@candidate", "--json")
    assert json.loads(promoted.output) == {"name": "tickets", "champion": "2", "previous": "1"}
    assert aliases() == {"champion": "2", "candidate": "2", "previous": "1"}
    assert qlora("rollback", "tickets").output == "models:/tickets@champion is version 1, it was version 2\n"
    assert aliases() == {"champion": "1", "candidate": "2", "previous": "2"}


def test_a_version_whose_files_are_gone_is_not_promoted(make_merged: Make, store: str) -> None:
    register(make_merged, store, "one")
    uri, _ = register(make_merged, store, "two")
    (Path(uri) / "model" / "model.safetensors").unlink()
    assert "model/model.safetensors is gone" in refused("promote", "models:/tickets/2")


def aged(path: Path, days: float) -> None:
    for each in [path, *path.rglob("*")]:
        os.utime(each, (time.time() - days * 86400,) * 2)


def test_gc_removes_what_no_version_refers_to(make_merged: Make, store: str) -> None:
    base = Path(store) / "bases" / "org--tiny" / "abc"
    evidence = {"training_key": "t1", "data_digest": "d1", "base_uri": f"{base}/files"}
    kept, _ = register(make_merged, store, "one", evidence=evidence)
    make_merged(store, "young")
    unwanted = Path(make_merged(store, "unwanted")[0])
    for name in ("checkpoints/t1/a/x", "checkpoints/t2/a/x", "listings/d1.json", "listings/d2.json", "tokenizers/t/x",
                 "adapters/t2/a/x", "bases/org--tiny/abc/files/x", "bases/org--tiny/old/files/x"):  # fmt: skip
        path = Path(store) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
        aged(path, 30)
    aged(unwanted, 30)
    aged(Path(kept), 30)
    listed = json.loads(qlora("gc", "--dry-run", "--json").output)
    expected = {
        f"{store}/checkpoints/t1": "its training is registered",
        f"{store}/listings/d2.json": "no version was trained on it",
        f"{store}/bases/org--tiny/old": "no version refers to it",
        str(unwanted): "no version refers to it",
    }
    assert {piece["uri"]: piece["why"] for piece in listed["pieces"]} == expected
    assert all(Path(uri).exists() for uri in expected)
    assert qlora("gc").output.endswith("removed\n")
    assert not any(Path(uri).exists() for uri in expected)
    assert Path(kept, "model", "config.json").exists() and (Path(store) / "merged" / "young").exists()
    assert json.loads(qlora("gc", "--dry-run", "--json").output)["pieces"] == []


def test_gc_refuses_a_registry_that_knows_nothing_of_the_store(make_merged: Make, store: str) -> None:
    unwanted = Path(make_merged(store, "unwanted")[0])
    aged(unwanted, 30)
    assert "no version in this registry refers to" in refused("gc")
    assert unwanted.exists()
    assert "1 pieces" in qlora("gc", "--dry-run").output


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
