"""One spelling of a folder for MLflow, whatever the store calls it."""

import pytest
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
from mlflow.store.artifact.azure_blob_artifact_repo import AzureBlobArtifactRepository
from mlflow.store.artifact.host_policy import rejected_host_addressed_scheme

from qlora_pipelines.components.core.registry import sources

BLOBS = "wasbs://models@acme.blob.core.windows.net"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    monkeypatch.delenv("AZURE_STORAGE_ENDPOINT", raising=False)


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("s3://models/team-a/merged/k", "s3://models/team-a/merged/k"),
        ("gs://models/team-a/merged/k", "gs://models/team-a/merged/k"),
        ("/data/store/merged/k", "/data/store/merged/k"),
        ("az://models/team-a/merged/k", f"{BLOBS}/team-a/merged/k"),
        ("az://models", BLOBS),
        ("abfss://models@acme.dfs.core.windows.net/team-a", f"{BLOBS}/team-a"),
        ("abfss://models@other.dfs.core.windows.net/k", "wasbs://models@other.blob.core.windows.net/k"),
        ("abfss://m@a.dfs.core.chinacloudapi.cn/k", "wasbs://m@a.blob.core.chinacloudapi.cn/k"),
        ("abfss://m@onelake.dfs.fabric.microsoft.com/k", "abfss://m@onelake.dfs.fabric.microsoft.com/k"),
        (f"{BLOBS}/team-a", f"{BLOBS}/team-a"),
    ],
)
def test_the_source_is_one_that_mlflow_reads(uri: str, source: str) -> None:
    assert sources.source_uri(uri) == source


@pytest.mark.parametrize("uri", ["az://models/team-a", "abfss://models@other.dfs.core.windows.net/team-a"])
def test_mlflow_knows_the_scheme_and_its_server_takes_it(uri: str) -> None:
    source = sources.source_uri(uri)
    assert source.partition("://")[0] in get_registered_artifact_repositories()
    assert rejected_host_addressed_scheme(source) is None
    container, _, path, _ = AzureBlobArtifactRepository.parse_wasbs_uri(source)
    assert (container, path) == ("models", "team-a")


def test_mlflow_still_takes_neither_az_nor_abfss() -> None:
    """Why there is a translation at all; where this fails, there may be less to do."""
    assert "az" not in get_registered_artifact_repositories()
    assert rejected_host_addressed_scheme("abfss://models@acme.dfs.core.windows.net/team-a") == "abfss"


def test_an_unknown_account_is_not_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    assert sources.source_uri("az://models/k") == "az://models/k"


def test_the_endpoint_says_which_cloud_the_account_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "https://acme.blob.core.chinacloudapi.cn")
    assert sources.source_uri("az://models/k") == "wasbs://models@acme.blob.core.chinacloudapi.cn/k"


def test_an_endpoint_on_this_machine_is_no_other_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:10000/acme")
    assert sources.source_uri("az://models/k") == f"{BLOBS}/k"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("s3://models/k", "s3://models/k"),
        ("gs://models/k", "gs://models/k"),
        ("az://models/k", "https://acme.blob.core.windows.net/models/k"),
        ("abfss://models@other.dfs.core.windows.net/k", "https://other.blob.core.windows.net/models/k"),
    ],
)
def test_kserve_reads_blobs_by_https(uri: str, address: str) -> None:
    assert sources.https_uri(uri) == address
