"""One store of each cloud and one MLflow server a session; each test gets a prefix and names of its own."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from qlora_pipelines.components.core.store import connections, storage
from tests.integration import clouds, servers

BUCKET = "qlora-test"


@pytest.fixture(scope="session")
def s3_store() -> Iterator[str]:
    """An `s3://bucket/prefix` on a real S3, with AWS_* naming it in the environment.

    Ceph's gateway where it is installed, else the server of AWS_ENDPOINT_URL_S3, else moto's.
    """
    with pytest.MonkeyPatch.context() as patch:
        if servers.has_ceph():
            server = servers.ceph()
        elif os.environ.get("AWS_ENDPOINT_URL_S3"):
            yield from _prefix()
            return
        else:
            pytest.importorskip("moto", reason="no radosgw, no AWS_ENDPOINT_URL_S3, and no moto: no S3 to test with")
            server = servers.moto()
        with server as endpoint:
            patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
            patch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
            patch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
                patch.delenv(name, raising=False)
            yield from _prefix()


@pytest.fixture(scope="session")
def azure() -> Iterator[None]:
    """AZURE_* in the environment name a container in Azurite: `az://CONTAINER`."""
    if not clouds.azurite():
        pytest.skip("no azurite-blob on the PATH, none named by AZURITE, none that npx knows: no Azure to test with")
    yield from _environment("AZURE_", clouds.azure())


@pytest.fixture(scope="session")
def google() -> Iterator[None]:
    """GOOGLE_* in the environment name a bucket on a server of its XML API: `gs://CONTAINER`."""
    pytest.importorskip("moto", reason="no moto: nothing here speaks Google's XML API")
    yield from _environment("GOOGLE_", clouds.google())


def _environment(prefix: str, server: contextlib.AbstractContextManager[dict[str, str]]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(prefix)]:
            patch.delenv(name)
        with server as environment:
            for name, value in environment.items():
                patch.setenv(name, value)
            yield


class RemoteStore(NamedTuple):
    """A store in a bucket: its address, and the variables by which a process finds and enters it."""

    uri: str
    environment: dict[str, str]


@pytest.fixture(params=["s3", "gs", "az", "abfss"])
def remote_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> RemoteStore:
    """A store of the test's own on each cloud, named by QLORA_STORE, its variables in the environment."""
    cloud = {"s3": "s3_store", "gs": "google"}.get(request.param, "azure")
    top = (
        request.getfixturevalue(cloud)
        or {
            "gs": f"gs://{clouds.CONTAINER}",
            "az": f"az://{clouds.CONTAINER}",
            "abfss": f"abfss://{clouds.CONTAINER}@{clouds.ACCOUNT}.dfs.core.windows.net",
        }[request.param]
    )
    uri = f"{top}/{request.node.originalname}-{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv(storage.STORE_VARIABLE, uri)
    own = {"s3_store": "AWS_", "google": "GOOGLE_", "azure": "AZURE_"}[cloud]
    environment = {name: value for name, value in os.environ.items() if name.startswith(own)}
    return RemoteStore(uri, environment | {storage.STORE_VARIABLE: uri})


def _prefix() -> Iterator[str]:
    connections.forget()
    names = {
        bucket["Name"] for bucket in connections.client(os.environ["AWS_ENDPOINT_URL_S3"]).list_buckets()["Buckets"]
    }
    if BUCKET not in names:
        connections.client(os.environ["AWS_ENDPOINT_URL_S3"]).create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}/{os.getpid()}"
    connections.forget()


@pytest.fixture(scope="session")
def mlflow_server(s3_store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server with logins and its artifacts on S3; the environment logs in as its admin."""
    pytest.importorskip("flask_wtf", reason="MLflow's logins need Flask-WTF")
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch, servers.mlflow(folder, f"{s3_store}/mlflow") as address:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        patch.setenv("MLFLOW_TRACKING_USERNAME", servers.ADMIN)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", servers.ADMIN_PASSWORD)
        yield address


@pytest.fixture
def proxy() -> Iterator[Callable[[str], servers.Proxy]]:
    """Makes a proxy before a server, which cuts and refuses connections when told to."""
    made: list[servers.Proxy] = []

    def make(target: str) -> servers.Proxy:
        made.append(servers.Proxy(target))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def own_store(s3_store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of the test's own on the session's S3, named by QLORA_STORE."""
    uri = f"{s3_store}/{request.node.name.split('[')[0]}"
    monkeypatch.setenv(storage.STORE_VARIABLE, uri)
    return uri


@pytest.fixture(scope="session", autouse=True)
def _report_the_server(record_testsuite_property: Callable[[str, object], None]) -> None:
    record_testsuite_property("s3", "ceph" if servers.has_ceph() else "other")


@pytest.fixture
def name() -> str:
    return f"tickets-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def fresh_servers(mlflow_server: str, own_store: str) -> Iterator[None]:
    """Each test starts from the session's endpoints, also after one that changed them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL_S3"])
        patch.delenv("MLFLOW_S3_ENDPOINT_URL", raising=False)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        connections.forget()
        yield
    connections.forget()
