"""What is wrong with a cluster is one clear line, before anything expensive starts; and nothing is lost."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_pipelines.pipelines.placement import STEP_LABEL
from tests.cluster.conftest import RELEASE, Installed
from tests.cluster.test_runs import config, step_pods


@contextlib.contextmanager
def changed(installed: Installed, secret: str, **values: str) -> Iterator[None]:
    """Other values in a secret; none at all: there is no such secret."""
    before = installed.cluster.secret(secret)
    installed.cluster.kubectl("delete", "secret", secret)
    try:
        if values:
            installed.cluster.make_secret(secret, before | values)
        yield
    finally:
        installed.cluster.make_secret(secret, before)


@pytest.mark.parametrize(
    ("secret", "values", "line"),
    [
        ("qlora-s3", {}, "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("qlora-s3", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "check the address, the endpoint and the credentials"),
        ("qlora-mlflow", {}, "refuses this login: check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("qlora-mlflow", {"MLFLOW_TRACKING_PASSWORD": "wrong"}, "refuses this login: check MLFLOW_TRACKING_USERNAME"),
    ],
    ids=["no-s3-secret", "wrong-s3-login", "no-mlflow-secret", "wrong-mlflow-login"],
)
def test_a_login(installed: Installed, tmp_path: Path, secret: str, values: dict[str, str], line: str) -> None:
    run = config(installed, tmp_path, "tiny-login")
    with changed(installed, secret, **values):
        ended = installed.submit(run, tmp_path)
    assert ended["code"] == 1 and ended["failed_step"] == "plan", ended["log"]
    assert len(ended["last_lines"]) == 1 and line in ended["last_lines"][0], ended["last_lines"]
    assert step_pods(installed, ended["run_id"]) == {"plan-run"}


def test_a_bucket_that_is_not_there(installed: Installed, tmp_path: Path) -> None:
    run = config(installed, tmp_path, "tiny-bucket", base_model="s3://no-such-bucket-of-ours/model")
    ended = installed.submit(run, tmp_path)
    assert ended["failed_step"] == "plan" and len(ended["last_lines"]) == 1
    assert "s3://no-such-bucket-of-ours/model" in ended["last_lines"][0]


def test_memory_that_the_plan_knows_is_too_small(installed: Installed, tmp_path: Path) -> None:
    ended = installed.submit(config(installed, tmp_path, "tiny-memory", memory="200Mi"), tmp_path)
    assert ended["failed_step"] == "plan" and len(ended["last_lines"]) == 1
    assert "200Mi" in ended["last_lines"][0] and "memory" in ended["last_lines"][0]


def test_registration_without_mlflow_is_repeated_without_training_again(installed: Installed, tmp_path: Path) -> None:
    cluster, server = installed.cluster, f"deployment/{RELEASE}-mlflow"
    run = config(installed, tmp_path, "tiny-away")

    def stop_before_registration() -> None:
        while all(
            pod["metadata"]["creationTimestamp"] < began
            for pod in cluster.get("pod", selector=f"{STEP_LABEL}=dequantize-and-merge")
        ):
            time.sleep(1)
        cluster.kubectl("scale", server, "--replicas=0")

    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    threading.Thread(target=stop_before_registration, daemon=True).start()
    try:
        ended = installed.submit(run, tmp_path)
    finally:
        cluster.kubectl("scale", server, "--replicas=1")
        cluster.kubectl("rollout", "status", server, "--timeout=300s")
    assert ended["code"] == 1 and ended["failed_step"] == "register", ended["log"]
    assert "MLflow" in ended["last_lines"][0] and "does not answer" in ended["last_lines"][0]
    again = installed.submit(run, tmp_path)
    assert again["code"] == 0, again["log"]
    assert "train-qlora" not in step_pods(installed, again["run_id"])
