"""Which addresses are read, and that the others are refused by name wherever one is given."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_pipelines.components.core.data import listing
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import base_model
from qlora_pipelines.components.core.store import addresses, connections, storage
from qlora_pipelines.components.core.store.addresses import Location


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("s3://bucket/a/b", Location("s3", "s3://bucket", "bucket", "", "a/b")),
        ("s3://bucket", Location("s3", "s3://bucket", "bucket", "", "")),
        ("gs://bucket/a", Location("gs", "gs://bucket", "bucket", "", "a")),
        ("az://container/a", Location("az", "az://container", "container", "", "a")),
        (
            "abfss://container@account.dfs.core.windows.net/a/b",
            Location(
                "abfss", "abfss://container@account.dfs.core.windows.net", "container", "account", "a/b", "windows.net"
            ),
        ),
        (
            "wasbs://container@account.blob.core.windows.net/a",
            Location(
                "wasbs", "wasbs://container@account.blob.core.windows.net", "container", "account", "a", "windows.net"
            ),
        ),
        ("/a/b", None),
        ("a/b", None),
        ("file:///a/b", None),
        ("a:b/c", None),
    ],
)
def test_what_an_address_names(uri: str, location: Location | None) -> None:
    assert addresses.parse(uri) == location
    assert storage.is_remote(uri) == (location is not None)


REFUSED = {
    "S3://bucket/a": "S3:// is not read here; give it as s3://bucket/a",
    "s3:/bucket/a": "s3:/ is not read here; give it as s3://bucket/a",
    "s3a://bucket/a": "s3a:// is not read here; give it as s3://bucket/a",
    "minio://bucket/a": "minio:// is not read here; give it as s3://bucket/a",
    "gcs://bucket/a": "gcs:// is not read here; give it as gs://bucket/a",
    "wasb://c@a.blob.core.windows.net/a": "wasb:// is not read here; give it as wasbs://container@account",
    "http://host/a": "http:// is not read here; give a local path or an s3://, gs:// or az:// prefix",
    "https://host/a": "https:// is not read here; give a local path or an s3://, gs:// or az:// prefix",
    "s3:///a": "names no place; write s3://bucket/prefix",
    "abfss://c@one.dfs.fabric.microsoft.com/a": "one.dfs.fabric.microsoft.com is no storage account; write account.",
    "abfss://container/a": "names no place; write abfss://container@account.dfs.core.windows.net/prefix",
}


def the_store(uri: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(storage.STORE_VARIABLE, uri)
        storage.root()


@pytest.mark.parametrize("uri", REFUSED)
@pytest.mark.parametrize(
    "give",
    [
        listing.make,
        lambda uri: base_model.resolve(uri, ""),
        lambda uri: base_model.fetch(uri, Path("/nowhere")),
        the_store,
        lambda uri: storage.check_address(uri, "the source of a version"),
        storage.read_bytes,
        lambda uri: storage.write_bytes(uri, b""),
    ],
    ids=["data", "base", "base fetched", "store", "registry", "read", "written"],
)
def test_a_scheme_that_is_not_read_is_refused_by_name(uri: str, give: Callable[[str], object]) -> None:
    with pytest.raises(InputError) as error:
        give(uri)
    assert f"{uri}: {REFUSED[uri]}" in str(error.value) and "\n" not in str(error.value)


def test_azure_needs_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InputError, match=r"az://container: set AZURE_STORAGE_ACCOUNT_NAME, or give the account in an"):
        storage.read_bytes("az://container/a")


@pytest.mark.parametrize(
    ("uri", "account", "own", "expected"),
    [
        ("az://c/k", "mine", "", "https://mine.blob.core.windows.net"),
        ("az://c/k", "mine", "http://127.0.0.1:10000/mine", "http://127.0.0.1:10000/mine"),
        ("abfss://c@mine.dfs.core.windows.net/k", "mine", "http://127.0.0.1:10000/mine", "http://127.0.0.1:10000/mine"),
        ("abfss://c@other.dfs.core.windows.net/k", "mine", "https://mine.blob.core.usgovcloudapi.net",
         "https://other.blob.core.windows.net"),
        ("abfss://c@mine.dfs.core.chinacloudapi.cn/k", "", "", "https://mine.blob.core.chinacloudapi.cn"),
        ("wasbs://c@mine.blob.core.usgovcloudapi.net/k", "", "https://mine.blob.core.usgovcloudapi.net/",
         "https://mine.blob.core.usgovcloudapi.net/"),
    ],
)  # fmt: skip
def test_an_azure_address_is_on_the_server_that_it_names(
    uri: str, account: str, own: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AZURE_STORAGE_ENDPOINT is that of one account; another account's blobs are never looked for there."""
    for name, value in {"AZURE_STORAGE_ACCOUNT_NAME": account, "AZURE_STORAGE_ENDPOINT": own}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    assert connections.server(uri) == expected
    assert connections.connect(uri).config["endpoint"] == expected
