"""Stores on Google Cloud Storage and on Azure: what their pods and MLflow's server need."""

import pytest

from qlora_pipelines.components.core.registry import sources
from qlora_pipelines.pipelines import placement
from tests.charts.rendering import merged, of_kind, pods, render, values


@pytest.mark.parametrize(
    ("store", "artifacts"),
    [
        ("s3://models/team-a", "s3://models/team-a/mlflow"),
        ("gs://models/team-a/", "gs://models/team-a/mlflow"),
        ("az://models/team-a", "wasbs://models@acme.blob.core.windows.net/team-a/mlflow"),
        ("abfss://models@acme.dfs.core.windows.net", "wasbs://models@acme.blob.core.windows.net/mlflow"),
        ("abfss://models@other.dfs.core.usgovcloudapi.net", "wasbs://models@other.blob.core.usgovcloudapi.net/mlflow"),
    ],
)
def test_the_mlflow_server_is_given_the_address_that_it_reads(
    store: str, artifacts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"store.uri": store, "store.azureAccount": "acme"}
    [deployment] = of_kind(render(merged(values("trial"), changes)), "Deployment")
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[args.index("--artifacts-destination") + 1] == artifacts
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "acme")
    assert sources.source_uri(f"{store.rstrip('/')}/mlflow") == artifacts  # as a version's source is


def test_the_cloud_of_the_account_is_its_endpoints() -> None:
    changes = {"store.uri": "az://models", "store.azureAccount": "acme",
               "store.azureEndpoint": "https://acme.blob.core.chinacloudapi.cn"}  # fmt: skip
    [deployment] = of_kind(render(merged(values("trial"), changes)), "Deployment")
    args = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "wasbs://models@acme.blob.core.chinacloudapi.cn/mlflow" in args


def test_googles_key_is_where_the_variable_says_in_each_pod_that_reads_the_store() -> None:
    for pod in pods(render(values("google"))):
        [container] = pod.containers[-1:]
        mounts = [mount for mount in container["volumeMounts"] if mount["mountPath"] == placement.GCS_FOLDER]
        volumes = [volume["secret"] for volume in pod.spec["volumes"] if "secret" in volume]
        if pod.labels["app.kubernetes.io/component"] in ("upload", "mlflow-user"):
            assert mounts == volumes == []
        else:
            assert mounts == [{"name": "gcs-key", "mountPath": placement.GCS_FOLDER, "readOnly": True}], pod.owner
            assert volumes == [{"secretName": placement.GCS_SECRET, "optional": True}]
    assert not any("secret" in volume for pod in pods(render(values("trial"))) for volume in pod.spec["volumes"])


def test_workload_identity_needs_a_label_and_variables_that_no_pod_mentions() -> None:
    objects = render(values("azure"))
    accounts = {
        found["metadata"]["name"]: found["metadata"].get("annotations") for found in of_kind(objects, "ServiceAccount")
    }
    assert all("azure.workload.identity/client-id" in (annotations or {}) for annotations in accounts.values())
    for pod in pods(objects):
        assert pod.labels["azure.workload.identity/use"] == "true", pod.owner
        for container in pod.containers:
            # Its webhook leaves a variable alone that is there already.
            assert not {"AZURE_CLIENT_ID", "AZURE_TENANT_ID"} & {each["name"] for each in container["env"]}
        for compiling in pod.spec.get("initContainers", []):
            assert compiling["args"] == ["--pod-label", "azure.workload.identity/use", "true"]
