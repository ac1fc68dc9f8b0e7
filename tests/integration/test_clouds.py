"""What the storage asks of obstore, asked of each cloud's server: they do what the storage believes.

And what MLflow makes of a source there.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import AzureStore, GCSStore

from qlora_pipelines.components.core.registry import sources
from tests.integration import clouds

PART = 5 << 20
PARTS = [os.urandom(PART), os.urandom(PART), os.urandom(1000)]


@pytest.fixture(params=["gs", "az"])
def bucket(request: pytest.FixtureRequest) -> Any:
    """A store of obstore's, of the environment alone, below a prefix of the test's own."""
    request.getfixturevalue({"gs": "google", "az": "azure"}[request.param])
    kind = {"gs": GCSStore, "az": AzureStore}[request.param]
    return kind(clouds.CONTAINER, prefix=request.node.originalname, retry_config={"max_retries": 0})


def names(bucket: Any) -> list[str]:
    return sorted(found["path"] for page in obstore.list(bucket) for found in page)


def test_what_is_written_is_listed_read_and_deleted(bucket: Any) -> None:
    for name in ("a/ü b%2e.txt", "a/c", "empty"):
        obstore.put(bucket, name, b"" if name == "empty" else b"hello world")
    assert {found["path"]: found["size"] for page in obstore.list(bucket) for found in page} == {
        "a/ü b%2e.txt": 11,
        "a/c": 11,
        "empty": 0,
    }
    assert names(bucket) == ["a/c", "a/ü b%2e.txt", "empty"]
    assert bytes(obstore.get(bucket, "a/ü b%2e.txt").bytes()) == b"hello world"
    obstore.delete(bucket, ["a/ü b%2e.txt", "empty"])
    assert names(bucket) == ["a/c"]
    with pytest.raises(FileNotFoundError):
        obstore.get(bucket, "empty")
    with pytest.raises(FileNotFoundError):
        obstore.head(bucket, "empty")


def test_a_range_is_read_only_of_the_content_that_was_listed(bucket: Any) -> None:
    obstore.put(bucket, "a", b"hello world")
    etag = obstore.head(bucket, "a")["e_tag"]
    [listed] = [found for page in obstore.list(bucket) for found in page]
    assert etag is not None and (listed["e_tag"] or "").strip('"') == etag.strip('"')
    for known in (etag, etag.strip('"')):
        found = obstore.get(bucket, "a", options={"range": (2, 5), "if_match": known})
        assert bytes(found.bytes()) == b"llo" and found.meta["size"] == 11
    obstore.put(bucket, "a", b"HELLO WORLD")
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(bucket, "a", options={"range": (2, 5), "if_match": etag})


def test_a_file_in_parts_appears_when_it_is_closed(bucket: Any) -> None:
    with obstore.open_writer(bucket, "large", buffer_size=PART) as writer:
        for part in PARTS:
            writer.write(part)
        assert names(bucket) == []
    assert bytes(obstore.get(bucket, "large").bytes()) == b"".join(PARTS)
    obstore.put(bucket, "streamed", iter(PARTS), chunk_size=PART)
    assert obstore.head(bucket, "streamed")["size"] == sum(map(len, PARTS))
    obstore.copy(bucket, "large", "copied")
    assert bytes(obstore.get(bucket, "copied").bytes()) == b"".join(PARTS)


def test_what_must_not_be_there_yet_is_written_once(bucket: Any) -> None:
    obstore.put(bucket, "claim", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(bucket, "claim", b"second", mode="create")
    assert bytes(obstore.get(bucket, "claim").bytes()) == b"first"


def failing() -> Iterator[bytes]:
    yield from PARTS[:2]
    raise RuntimeError("the reader's disk is gone")


def test_a_file_whose_writer_fails_does_not_appear(bucket: Any) -> None:
    with pytest.raises(RuntimeError), obstore.open_writer(bucket, "large", buffer_size=PART) as writer:
        for part in failing():
            writer.write(part)
    with pytest.raises(RuntimeError):
        obstore.put(bucket, "streamed", failing(), chunk_size=PART)
    assert names(bucket) == []


def test_azure_refuses_another_key(azure: None) -> None:
    stranger = AzureStore(clouds.CONTAINER, account_key="d3Jvbmc=", retry_config={"max_retries": 0})
    with pytest.raises(obstore.exceptions.PermissionDeniedError):
        obstore.put(stranger, "a", b"hello")


def test_both_spellings_of_an_azure_address_are_one_place(azure: None) -> None:
    source = sources.source_uri(f"az://{clouds.CONTAINER}/spelt")
    address = f"abfss://{clouds.CONTAINER}@{clouds.ACCOUNT}.dfs.core.windows.net/spelt"
    assert sources.source_uri(address) == source
    obstore.put(AzureStore.from_url(address), "a", b"hello")
    assert bytes(obstore.get(AzureStore(clouds.CONTAINER), "spelt/a").bytes()) == b"hello"


def test_mlflow_downloads_what_a_source_names(azure: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("azure.storage.blob", reason="MLflow reads Azure with azure-storage-blob")
    import mlflow

    obstore.put(AzureStore(clouds.CONTAINER), "merged/k/MLmodel", b"flavors: {}\n")
    obstore.put(AzureStore(clouds.CONTAINER), "merged/k/model/config.json", b"{}")
    parts = {
        "DefaultEndpointsProtocol": "http",
        "AccountName": clouds.ACCOUNT,
        "AccountKey": clouds.KEY,
        "BlobEndpoint": os.environ["AZURE_STORAGE_ENDPOINT"],
    }
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", ";".join(f"{name}={part}" for name, part in parts.items()))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db")
    client.create_registered_model("tickets")
    client.create_model_version("tickets", sources.source_uri(f"az://{clouds.CONTAINER}/merged/k"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = Path(mlflow.artifacts.download_artifacts("models:/tickets/1", dst_path=str(tmp_path / "here")))
    assert (folder / "model" / "config.json").read_bytes() == b"{}"
