"""A store, or a proxy before it, that sends other bytes: each place that reads refuses them."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import PrepareConfig
from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.registry.champion import Champion
from qlora_pipelines.components.core.store import attempts, connections, copies, keys, objects, storage
from qlora_pipelines.components.dequantize_and_merge import task as merge
from qlora_pipelines.components.evaluate_model import scored_models
from qlora_pipelines.components.evaluate_model import task as evaluate
from qlora_pipelines.components.plan_run import sampling
from qlora_pipelines.components.prepare_dataset import task as prepare
from qlora_pipelines.components.train_qlora import task as train
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from tests.components.conftest import digest
from tests.conftest import conversation, write_jsonl
from tests.meddling import MEDDLINGS, Meddler

REFUSED = "bytes came|is not the file that its manifest lists"
ROWS = 1200


@pytest.fixture(params=MEDDLINGS)
def meddling(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.contextmanager
def refused(between: Meddler, meddling: str, only: str) -> object:
    """Refuses what comes while objects of this name are changed on their way; what was written is not changed."""
    between.meddling, between.only, between.meddled = meddling, only, 0
    with pytest.raises(InputError, match=REFUSED) as error:
        yield
    assert between.meddled and "\n" not in str(error.value)
    between.meddling = ""


def rows(s3_place: Path, bucket: str) -> str:
    path = write_jsonl(s3_place / "rows.jsonl", [conversation(f"question {n}", f"cat {n}") for n in range(ROWS)])
    storage.upload_file(path, f"{bucket}/data/rows.jsonl")
    return f"{bucket}/data"


def test_rows_that_prepare_dataset_reads(
    between: Meddler, meddling: str, bucket: str, s3_place: Path, tiny_model: Path
) -> None:
    listing_uri = listing.save(listing.make(rows(s3_place, bucket)))

    def run() -> prepare.Result:
        paths = {name: str(s3_place / name) for name in ("train_set", "eval_set", "rejected", "report")}
        return prepare.run(
            PrepareConfig(max_length=64, eval_share=0.2),
            listing_uri=listing_uri, tokenizer_uri=str(tiny_model), **paths,
        )  # fmt: skip

    with refused(between, meddling, "rows.jsonl"):
        run()
    found = run()
    assert found.train_rows + found.eval_rows == ROWS


def test_rows_that_plan_run_looks_at(between: Meddler, meddling: str, bucket: str, s3_place: Path) -> None:
    file = listing.first_file(listing.make(rows(s3_place, bucket))["train"])
    with refused(between, meddling, "rows.jsonl"):
        sampling.first_rows(file)
    assert sampling.first_rows(file).rows


@pytest.mark.parametrize("shorter", MEDDLINGS[:2])
def test_rows_of_a_large_file_that_plan_run_looks_at(
    between: Meddler, shorter: str, bucket: str, s3_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its first part is read, so a flipped bit shows when prepare_dataset reads it whole."""
    monkeypatch.setattr(storage, "PART", 1000)
    file = listing.first_file(listing.make(rows(s3_place, bucket))["train"])
    with refused(between, shorter, "rows.jsonl"):
        sampling.first_rows(file)


def base(bucket: str, staged: bool) -> str:
    """A base with a file of several parts, whose ETag is no MD5."""
    uri = f"{bucket}/base"
    storage.write_bytes(f"{uri}/config.json", b"{}" * 100)
    storage.write_bytes(f"{uri}/model.safetensors", b"weights" * 1000)
    if staged:
        files = {
            name: {"size": size, "sha256": storage.sha256(f"{uri}/{name}", size)}
            for name, size in storage.sizes(uri).items()
        }
        attempts.finish(uri, {}, files)
    return uri


@pytest.mark.parametrize("staged", [False, True], ids=["in place", "staged"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [False, True], ids=["", "kept"])
def test_a_base(
    between: Meddler, meddling: str, bucket: str, s3_place: Path, name: str, staged: bool, kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    uri = base(bucket, staged)
    if kept:
        monkeypatch.setenv(base_model.CACHE_VARIABLE, str(s3_place / "kept"))
    with refused(between, meddling, name):
        base_model.fetch(uri, s3_place / "copy")
    assert not list(s3_place.rglob(name))
    folder = base_model.fetch(uri, s3_place / "copy")
    assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000
    if kept:  # a kept file that was altered is fetched again
        (folder / name).write_bytes(b"x" * (folder / name).stat().st_size)
        folder = base_model.fetch(uri, s3_place / "copy")
        assert (folder / "model.safetensors").read_bytes() == b"weights" * 1000


def test_the_small_files_of_a_base(between: Meddler, meddling: str, bucket: str, s3_place: Path) -> None:
    uri = base(bucket, staged=False)
    with refused(between, meddling, "config.json"):
        base_model.small_files(uri, "", s3_place / "copy")


def test_a_staged_base_that_is_another_now(bucket: str, s3_place: Path, place: Path) -> None:
    """On S3 and in a folder, in training and in the merge."""
    uri = base(bucket, staged=True)
    local = copies.fetch_work(attempts.read(uri), s3_place / "local")
    storage.write_bytes(f"{uri}/model.safetensors", b"WEIGHTS" * 1000)
    (local / "model.safetensors").write_bytes(b"WEIGHTS" * 1000)
    for where in (uri, str(local)):
        with pytest.raises(InputError, match=r"model\.safetensors is not the file that its manifest lists"):
            base_model.fetch(where, s3_place / "copy")
        with attempts.attempt(str(s3_place / "adapter")) as attempt:
            adapter = attempt.commit({"base_revision": "r", "quantised": {}, "quantization": {}}).uri
        with pytest.raises(InputError, match=r"model\.safetensors is not the file that its manifest lists"):
            given = {"adapter": adapter, "adapter_digest": digest(adapter)}
            merge.run(merge.Config(), base_uri=where, base_revision="r", merge_key="m", **given)


def test_a_base_in_place_that_is_another_than_planned(bucket: str, s3_place: Path) -> None:
    uri = base(bucket, staged=False)
    revision = base_model.resolve(uri, "")
    storage.write_bytes(f"{uri}/model.safetensors", b"WEIGHTS" * 1000)
    with pytest.raises(InputError, match="its files are not those of revision"):
        base_model.fetch(uri, s3_place / "copy", revision)


def finished(key_uri: str, info: dict[str, object]) -> attempts.Finished:
    with attempts.attempt(key_uri) as attempt:
        attempt.write("adapter_model.safetensors", b"weights" * 1000)
        return attempt.commit(info)


def test_a_tokenizer(between: Meddler, meddling: str, bucket: str, s3_place: Path, tiny_model: Path) -> None:
    listing_uri = listing.save(listing.make(rows(s3_place, bucket)))
    storage.upload(tiny_model, f"{bucket}/tokenizer")
    with refused(between, meddling, "tokenizer.json"):
        paths = {name: str(s3_place / name) for name in ("train_set", "eval_set", "rejected", "report")}
        prepare.run(PrepareConfig(), listing_uri=listing_uri, tokenizer_uri=f"{bucket}/tokenizer", **paths)


def test_a_checkpoint(
    between: Meddler, meddling: str, bucket: str, s3_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(f"{bucket}/checkpoints", keep=2)
    work = finished(f"{checkpoints.uri}/step-00000010", {"step": 10})
    between.meddling, between.only = meddling, "adapter_model.safetensors"
    found = None
    with contextlib.suppress(InputError):
        found = checkpoints.newest(s3_place / "one")
    assert found is None and between.meddled
    between.meddling = ""
    step, local = checkpoints.newest(s3_place / "two") or (0, s3_place)
    assert step == 10 and (local / "adapter_model.safetensors").read_bytes() == b"weights" * 1000
    storage.write_bytes(f"{work.uri}/adapter_model.safetensors", b"WEIGHTS" * 1000)
    assert checkpoints.newest(s3_place / "three") is None
    assert "is not the file that its manifest lists" in capsys.readouterr().out


def test_an_adapter_that_was_finished_before(between: Meddler, meddling: str, bucket: str, s3_place: Path) -> None:
    config = train.Config()
    made_from = {"key_format": keys.FORMAT, "base_revision": "r", "dataset_digest": "d"} | config.key_fields()
    finished(storage.join(storage.root(), "adapters", "key"), made_from | {"losses": [], "peak_mib": 0})
    with refused(between, meddling, "adapter_model.safetensors"):
        train.run(
            config, train_set="", dataset_digest="d", base_uri="", base_revision="r", training_key="key",
            adapter=str(s3_place / "adapter"), report=str(s3_place / "report.html"),
        )  # fmt: skip
    assert not (s3_place / "adapter").exists()


def test_a_champion_and_a_merged_model(between: Meddler, meddling: str, bucket: str, s3_place: Path) -> None:
    work = finished(f"{bucket}/merged", {"training_key": "other"})
    config = evaluate.Config()
    scores = s3_place / "scores"
    champion = Champion("champion 1", None, work)
    reads: list[Callable[[], object]] = [
        lambda: scored_models._merged_champion(config, [], champion, None),
        lambda: copies.fetch_work(work, scores),
    ]
    for read in reads:
        with refused(between, meddling, "adapter_model.safetensors"):
            read()


@pytest.mark.parametrize("size", [2, 1000])
def test_a_small_object_read_whole(between: Meddler, meddling: str, bucket: str, size: int) -> None:
    """Manifests, listings and all other small files."""
    storage.write_bytes(f"{bucket}/small", b"x" * size)
    with refused(between, meddling, "small"):
        storage.read_bytes(f"{bucket}/small")
    assert storage.read_bytes(f"{bucket}/small") == b"x" * size


@pytest.mark.parametrize("shorter", MEDDLINGS[:2])
def test_a_part_that_is_streamed(between: Meddler, shorter: str, bucket: str) -> None:
    """As pull reads, which compares all hashes at the end."""
    storage.write_bytes(f"{bucket}/part", b"x" * 1000)
    with refused(between, shorter, "part"):
        list(storage.stream(f"{bucket}/part", 100, 800))
    assert b"".join(data for _, data in storage.stream(f"{bucket}/part", 100, 800)) == b"x" * 800


def large(between: Meddler, bucket: str, monkeypatch: pytest.MonkeyPatch) -> storage.Entry:
    """An object of two parts, whose ETag is no checksum."""
    monkeypatch.setattr(objects, "PART", 5 << 20)
    with objects.writing(f"{bucket}/large") as write:
        for number in range(6):
            write(bytes([number]) * (1 << 20))
    (entry,) = storage.files(f"{bucket}/large")
    assert not objects.is_md5(entry.etag.removeprefix("etag:")) and entry.size == 6 << 20
    return entry


def test_without_a_checksum_the_first_read_is_kept_and_said(
    between: Meddler, bucket: str, s3_place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry, uri = large(between, bucket, monkeypatch), f"{bucket}/large"
    whole = copies.fetch(uri, entry, s3_place).read_bytes()
    assert f"{uri} has no checksum to compare with: not verified this time; its sha256 " in capsys.readouterr().out
    assert copies.fetch(uri, entry, s3_place).read_bytes() == whole
    assert "not verified" not in capsys.readouterr().out
    between.meddling, between.only = "flip a bit", "large"
    with pytest.raises(InputError, match="does not give the bytes of its first read"):
        copies.fetch(uri, entry, s3_place)
    for shorter in MEDDLINGS[:2]:
        with refused(between, shorter, "large"):
            copies.fetch(uri, entry, s3_place)


@pytest.mark.parametrize("algorithm", ["CRC64NVME", "CRC32"])
def test_the_checksum_that_s3_keeps_of_an_upload_in_parts(
    between: Meddler, bucket: str, s3_place: Path, capsys: pytest.CaptureFixture[str], algorithm: Any
) -> None:
    client, where = connections.client(between.address), {"Bucket": bucket[5:], "Key": "large"}
    upload: Any = client.create_multipart_upload(**where, ChecksumAlgorithm=algorithm, ChecksumType="FULL_OBJECT")
    part: Any = {**where, "UploadId": upload["UploadId"], "ChecksumAlgorithm": algorithm}
    etags = [client.upload_part(**part, PartNumber=number, Body=bytes(5 << 20))["ETag"] for number in (1, 2)]
    parts: Any = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    client.complete_multipart_upload(**where, UploadId=upload["UploadId"], MultipartUpload={"Parts": parts})
    uri = f"{bucket}/large"
    (entry,) = storage.files(uri)
    between.meddling, between.only = "flip a bit", "large"
    with pytest.raises(TransientError, match=f"large: other bytes came than are stored: their {algorithm} is"):
        copies.fetch(uri, entry, s3_place)
    between.meddling = ""
    assert copies.fetch(uri, entry, s3_place).read_bytes() == bytes(10 << 20)
    assert "not verified" not in capsys.readouterr().out


def test_an_object_that_changes_while_it_is_read(
    between: Meddler, bucket: str, s3_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = large(between, bucket, monkeypatch)
    storage.write_bytes(f"{bucket}/large", b"x" * entry.size)
    with pytest.raises(InputError, match="large changed since it was listed; start a new run"):
        copies.fetch(f"{bucket}/large", entry, s3_place)


def test_an_etag_of_an_encrypted_object_is_no_md5(between: Meddler, bucket: str, s3_place: Path) -> None:
    client = connections.client(between.address)
    client.put_object(
        Bucket=bucket.removeprefix("s3://"), Key="secret", Body=b"x" * 100, ServerSideEncryption="aws:kms"
    )
    assert not objects.check_md5(f"{bucket}/secret", "0" * 32, "1" * 32)


def test_what_is_uploaded_is_what_was_given(bucket: str) -> None:
    with objects.writing(f"{bucket}/a") as write:
        write(json.dumps({"a": 1}).encode())
    assert storage.read_bytes(f"{bucket}/a") == b'{"a": 1}'
