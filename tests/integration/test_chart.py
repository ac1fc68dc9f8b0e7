"""The chart's pods as processes here: its MLflow server, started as the chart says, and the check of `helm test`."""

import base64
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from qlora_pipelines.pipelines import placement
from tests.charts.rendering import CHART, NAMESPACE, RELEASE, environment, merged, of_kind, pods, render, values
from tests.integration import postgres, servers
from tests.pipelines.kfp_api.api_server import Kfp, serve

ROOT = Path(__file__).parents[2]
ADMIN = {
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": "a-long-admin-password",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key for cookies",
}
STEPS = {"MLFLOW_TRACKING_USERNAME": "runs", "MLFLOW_TRACKING_PASSWORD": "a-long-password-of-runs"}


def s3_keys() -> dict[str, str]:
    return {name: os.environ[name] for name in placement.S3_KEYS}


@contextlib.contextmanager
def chart_server(given: dict[str, Any], folder: Path, secrets: dict[str, dict[str, str]]) -> Iterator[str]:
    """Starts the chart's MLflow container as a process; yields its address.

    Only what a process cannot have as a pod does is another: the port, and the paths of its volumes.
    """
    objects = render(given)
    [pod] = [pod for pod in pods(objects) if pod.owner == f"Deployment/{RELEASE}-mlflow"]
    [container] = pod.spec["containers"]
    port = servers.free_port()
    paths = {"/etc/mlflow": folder / "etc", "/var/lib/mlflow": folder / "data", "/tmp": folder / "tmp"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} <= paths.keys()
    for path in paths.values():
        path.mkdir()

    def here(text: str) -> str:
        return re.sub("|".join(paths), lambda found: str(paths[found[0]]), text)

    for config in of_kind(objects, "ConfigMap"):
        if config["metadata"]["name"] == f"{RELEASE}-mlflow":
            (paths["/etc/mlflow"] / "auth.ini").write_text(here(config["data"]["auth.ini"]))
    (paths["/etc/mlflow"]).chmod(0o555)
    made = {name: here(value) for name, value in environment(container, objects, secrets).items()}
    command = [str(Path(sys.executable).parent / container["command"][0]), *map(here, container["args"])]
    command[command.index("--port") + 1] = str(port)
    command[command.index("--host") + 1] = "127.0.0.1"
    address = f"http://127.0.0.1:{port}"
    with servers.process(
        command, folder / "server.log", {"PATH": os.environ["PATH"], "AWS_DEFAULT_REGION": "us-east-1"} | made
    ):
        try:
            servers.until(lambda: servers.listens(f"{address}/health"), seconds=120)
        except TimeoutError:
            raise AssertionError((folder / "server.log").read_text()[-3000:]) from None
        yield address


def status(address: str, host: str = "", login: bool = False) -> int:
    """The HTTP status of a question about models, under a host name."""
    request = urllib.request.Request(f"{address}/api/2.0/mlflow/registered-models/search")
    if host:
        request.add_header("Host", host)
    if login:
        both = f"{ADMIN['MLFLOW_TRACKING_USERNAME']}:{ADMIN['MLFLOW_TRACKING_PASSWORD']}"
        request.add_header("Authorization", f"Basic {base64.b64encode(both.encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def with_store(s3_store: str) -> dict[str, Any]:
    return merged(values("trial"), {"store.uri": s3_store, "store.s3Endpoint": os.environ["AWS_ENDPOINT_URL_S3"]})


def use(address: str, monkeypatch: pytest.MonkeyPatch, artifact: Path) -> None:
    """A run with an artifact and a registered model, through the server alone."""
    for name, value in ADMIN.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name)  # artifacts are served: a client needs no rights on the store
    artifact.write_text("served")
    client = mlflow.MlflowClient(address)
    run = client.create_run(client.create_experiment("chart"))
    client.log_artifact(run.info.run_id, str(artifact))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert Path(client.download_artifacts(run.info.run_id, artifact.name)).read_text() == "served"
    client.create_registered_model("tickets")
    assert [found.name for found in client.search_registered_models()] == ["tickets"]


def test_mlflow_on_sqlite(with_store: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"qlora-mlflow-admin": ADMIN, "qlora-mlflow": STEPS, "qlora-s3": s3_keys()}
    with chart_server(with_store, tmp_path, secrets) as address:
        assert status(address) == 401
        assert status(address, login=True) == 200
        for host in (f"{RELEASE}-mlflow.{NAMESPACE}:5000", f"{RELEASE}-mlflow.{NAMESPACE}.svc.cluster.local:5000"):
            assert status(address, host, login=True) == 200
        assert status(address, "evil.example.com", login=True) == 403
        use(address, monkeypatch, tmp_path / "artifact.txt")
        backup(tmp_path)
        make_user(with_store, address, secrets)
        for name, value in STEPS.items():
            monkeypatch.setenv(name, value)
        steps = mlflow.MlflowClient(address)
        assert [found.name for found in steps.search_registered_models()] == ["tickets"]  # defaultPermission READ
        with pytest.raises(mlflow.MlflowException, match="Permission denied"):
            steps.delete_registered_model("tickets")
        steps.create_registered_model("mails")
    assert [path.name for path in (tmp_path / "etc").iterdir()] == ["auth.ini"]


def make_user(given: dict[str, Any], address: str, secrets: dict[str, dict[str, str]]) -> None:
    """Runs the pod of the job that makes the steps' user as a process."""
    objects = render(given)
    [pod] = [pod for pod in pods(objects) if pod.labels["app.kubernetes.io/component"] == "mlflow-user"]
    [container] = pod.spec["containers"]
    made = environment(container, objects, secrets) | {"MLFLOW_TRACKING_URI": address, "PATH": os.environ["PATH"]}
    command = [str(Path(sys.executable).with_name(container["command"][0])), *container["args"]]
    done = subprocess.run(command, env=made, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and done.stdout == "user runs: made\n", done.stdout + done.stderr


def backup(folder: Path) -> None:
    """Copies the running server's database by the command of the chart's README."""
    [code] = re.findall(r'-- python -c "(import sqlite3.*)"\n', (CHART / "README.md").read_text())
    code = (
        code.replace("\\", "")
        .replace("/var/lib/mlflow", f"{folder}/data")
        .replace("/tmp/mlflow.db", f"{folder}/copy.db")
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with sqlite3.connect(folder / "copy.db") as copy:
        assert copy.execute("SELECT name FROM registered_models").fetchall() == [("tickets",)]


@pytest.mark.skipif(not postgres.program("initdb"), reason="no PostgreSQL is installed")
def test_mlflow_on_postgres(with_store: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres.running() as port:
        database = {"host": "127.0.0.1", "port": port, "secret": "database", "sslMode": "disable"}
        given = merged(with_store, {"mlflow.database": database, "mlflow.auth.adminSecret": "mlflow-admin"})
        login = {"username": postgres.USER, "password": postgres.PASSWORD}
        with chart_server(
            given, tmp_path, {"mlflow-admin": ADMIN, "database": login, "qlora-s3": s3_keys()}
        ) as address:
            assert status(address) == 401
            use(address, monkeypatch, tmp_path / "artifact.txt")
    written = "".join(path.read_text() for path in (tmp_path / "etc").iterdir())
    assert postgres.PASSWORD not in written + (tmp_path / "server.log").read_text()


def test_mlflow_without_its_secret_does_not_start(with_store: dict[str, Any], tmp_path: Path) -> None:
    with (
        pytest.raises(KeyError, match="qlora-mlflow-admin"),
        chart_server(with_store, tmp_path, {"qlora-s3": s3_keys()}),
    ):
        pass


def run_check(given: dict[str, Any], kfp: Kfp, folder: Path, secrets: dict[str, dict[str, str]]) -> tuple[int, str]:
    """Runs the pod of `helm test` as a process; its exit code and what it wrote."""
    objects = render(given)
    [pod] = [pod for pod in pods(objects) if pod.owner == f"Pod/{RELEASE}-check"]
    [container] = pod.spec["containers"]
    token = folder / "token"
    token.write_text("a-token-of-the-service-account")
    made = environment(container, objects, secrets)
    assert made["KF_PIPELINES_SA_TOKEN_PATH"].startswith("/var/run/secrets/kubeflow/")
    made |= {"KF_PIPELINES_SA_TOKEN_PATH": str(token), "KF_PIPELINES_ENDPOINT": kfp.url, "HOME": str(folder)}
    command = [sys.executable, *container["command"][1:], *container["args"]]
    made |= {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(command, env=made, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_check_says_what_a_pod_reaches(with_store: dict[str, Any], mlflow_server: str, tmp_path: Path) -> None:
    given = merged(with_store, {"mlflow": {"externalUri": mlflow_server}})
    login = {name: os.environ[name] for name in placement.MLFLOW_KEYS}
    with serve(Kfp(token="a-token-of-the-service-account", multi_user=True)) as kfp:
        code, said = run_check(given, kfp, tmp_path, {"qlora-s3": s3_keys(), "qlora-mlflow": login})
        assert code == 0, said
        assert [line.split()[:2] for line in said.splitlines()] == [["ok", "store:"], ["ok", "mlflow:"], ["ok", "kfp:"]]

        kfp.token = "another"
        wrong = login | {"MLFLOW_TRACKING_PASSWORD": "a-wrong-password"}
        elsewhere = merged(given, {"store.uri": "s3://no-such-bucket/models"})
        code, said = run_check(elsewhere, kfp, tmp_path, {"qlora-s3": s3_keys(), "qlora-mlflow": wrong})
        assert code == 1
        lines = said.splitlines()
        assert [line.split()[:2] for line in lines] == [["FAILED", name] for name in ("store:", "mlflow:", "kfp:")], (
            said
        )
        assert "no-such-bucket" in lines[0] and "401" in lines[2]
        assert not {*login.values(), *s3_keys().values(), *wrong.values()} & set(said.split())
