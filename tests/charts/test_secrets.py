"""Which pod reads which secret, MLflow's administrator's above all."""

import re
from typing import Any

import pytest

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from tests.charts.rendering import CHART, EXAMPLES, NAMESPACE, RELEASE, Pod, chart, merged, notes, pods, render, values

ADMIN_SECRET = "qlora-mlflow-admin"


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    return values(request.param)


def secrets_of(pod: Pod) -> set[str]:
    """The secrets that a pod reads, as variables and as files."""
    variables = [variable for container in pod.containers for variable in container["env"]]
    found = {each["valueFrom"]["secretKeyRef"]["name"] for each in variables if "valueFrom" in each}
    assert not any("secretRef" in source for container in pod.containers for source in container.get("envFrom", []))
    return found | {volume["secret"]["secretName"] for volume in pod.spec["volumes"] if "secret" in volume}


def test_every_secret_key_is_one_that_the_documentation_names(example: dict[str, Any]) -> None:
    mlflow = {"auth": {"adminSecret": ADMIN_SECRET}} | example["mlflow"]
    login = placement.MLFLOW_KEYS
    known = {
        placement.HUB_SECRET: set(placement.HUB_KEYS),
        placement.S3_SECRET: set(placement.S3_KEYS),
        placement.AZURE_SECRET: set(placement.AZURE_KEYS),
        placement.MLFLOW_SECRET: set(login),
    }
    admin = mlflow["auth"]["adminSecret"]
    known[admin] = known.get(admin, set()) | {*login, "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    if database := mlflow.get("database"):
        known[database["secret"]] = {"username", "password"}
    said = (CHART / "README.md").read_text()
    for pod in pods(render(example)):
        for container in pod.containers:
            for variable in container["env"]:
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    assert reference["key"] in known[reference["name"]], (pod.owner, reference)
                    assert f"`{reference['key']}`" in said


def test_a_pod_gets_no_secret_that_it_does_not_need() -> None:
    read = {re.sub("-[0-9a-f]{8}$", "", pod.owner): secrets_of(pod) for pod in pods(render(values("full")))}
    s3, azure, gcs = placement.S3_SECRET, placement.AZURE_SECRET, placement.GCS_SECRET
    mlflow, hub = placement.MLFLOW_SECRET, placement.HUB_SECRET
    assert read == {
        "Job/qlora-upload": set(),
        "Job/qlora-mlflow-user": {mlflow, "mlflow-admin"},
        "Job/qlora-trigger-tickets": {s3, azure, gcs, hub},
        "Job/qlora-trigger-mails-": {s3, azure, gcs, hub},
        "Job/qlora-gc": {s3, azure, gcs, mlflow},
        "Pod/qlora-check": {s3, azure, gcs, mlflow},
        "Deployment/qlora-mlflow": {s3, azure, gcs, "mlflow-admin", "mlflow-database"},
    }


def test_only_the_server_and_one_job_read_the_administrators_login(example: dict[str, Any]) -> None:
    admin = example["mlflow"].get("auth", {}).get("adminSecret", ADMIN_SECRET)
    readers = {pod.labels["app.kubernetes.io/component"] for pod in pods(render(example)) if admin in secrets_of(pod)}
    assert readers == ({"mlflow", "mlflow-user"} if example["mlflow"].get("enabled") else set())
    steps = GOLDEN.read_text()
    assert f"secretName: {placement.MLFLOW_SECRET}\n" in steps and admin not in steps


@pytest.mark.parametrize(
    "changes",
    [
        {"mlflow.auth.adminSecret": placement.MLFLOW_SECRET},  # one login, as in 0.1
        {"mlflow.auth.enabled": False},
        {"mlflow": {"externalUri": "https://mlflow.example.com"}},
    ],
    ids=["one-login", "no-logins", "external"],
)
def test_no_user_is_made_where_there_is_none_to_make(changes: dict[str, Any]) -> None:
    given = merged(values("trial"), changes)
    assert "mlflow-user" not in "".join(chart().render(given, name=RELEASE, namespace=NAMESPACE).values())
    said = "Steps log in as its administrator and may change every model and user."
    assert (said in notes(given)) is ("mlflow.auth.adminSecret" in changes)
    assert said not in notes(values("trial"))
