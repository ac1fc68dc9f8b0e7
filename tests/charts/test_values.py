"""Values that would fail later are refused, with their path; every value does something, and says what."""

import json
import re
from typing import Any

import pytest
import yaml

from qlora_pipelines.components.core.config.run import RunConfig
from tests.charts.rendering import CHART, chart, helm, merged, render, values

TRIGGER = {
    "data": "s3://data/tickets/",
    "config": {"base_model": "org/base", "dataset_uri": "s3://data/tickets/", "model_name": "tickets"},
}
OWN_MLFLOW = {"mlflow.enabled": True, "mlflow.externalUri": ""}

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("store.uri", {"store.uri": ""}),
    ("store.uri: a folder is not read here; give a prefix in a bucket: s3://, gs://, az:// or abfss://",
     {"store.uri": "models/team-a"}),
    ("store.uri: S3:// is not read here", {"store.uri": "S3://models/team-a"}),
    ("store.uri: s3:/ is not read here", {"store.uri": "s3:/models/team-a"}),
    ("store.uri: http:// is not read here", {"store.uri": "http://minio:9000/models"}),
    ("store.uri: wasbs:// is not read here", {"store.uri": "wasbs://models@acme.blob.core.windows.net"}),
    ("store.modelsUri: minio:// is not read here", {"store.modelsUri": "minio://models"}),
    ("mlflow.artifacts: file:/// is not read here", {**OWN_MLFLOW, "mlflow.artifacts": "file:///artifacts"}),
    ("/store/uri", {"store.uri": "s3://Models/team-a"}),
    ("/store/uri", {"store.uri": "gs://"}),
    ("/store/uri", {"store.uri": "az://models@acme/team-a"}),
    ("/store/uri", {"store.uri": "abfss://models/team-a"}),
    ("/store/azureAccount", {"store.azureAccount": "acme.blob.core.windows.net"}),
    ("store.azureAccount: name the storage account that the az:// address of store.uri is in",
     {"store.uri": "az://models/team-a"}),
    ("/store/gcsKeyFile", {"store.gcsKeyFile": "/etc/key.json"}),
    ("/store/s3Endpoint", {"store.s3Endpoint": "https://key:secret@s3.example.com"}),
    ("/store/s3Endpiont", {"store.s3Endpiont": ""}),
    ("mlflow.externalUri", {"mlflow.enabled": True}),
    ("mlflow.externalUri", {"mlflow.externalUri": ""}),
    ("/mlflow/externalUri", {"mlflow.externalUri": "mlflow.example.com"}),
    ("mlflow.auth.adminSecret", {**OWN_MLFLOW, "mlflow.auth.adminSecret": ""}),
    ("/mlflow/auth/adminSecret", {"mlflow.auth.adminSecret": "MLflow_Admin"}),
    ("mlflow.database.secret", {**OWN_MLFLOW, "mlflow.database.host": "postgres"}),
    ("mlflow.database.host", {**OWN_MLFLOW, "mlflow.database.secret": "postgres"}),
    ("mlflow.replicas", {**OWN_MLFLOW, "mlflow.replicas": 2}),
    ("mlflow.ingress.host", {**OWN_MLFLOW, "mlflow.ingress.enabled": True, "mlflow.ingress.tlsSecret": "tls"}),
    ("mlflow.ingress.tlsSecret", {**OWN_MLFLOW, "mlflow.ingress": {"enabled": True, "host": "m.example.com"}}),
    ("mlflow.ingress.enabled", {**OWN_MLFLOW, "mlflow.ingress.enabled": True, "mlflow.auth.enabled": False}),
    ("mlflow.ingress.enabled", {"mlflow.ingress.enabled": True}),
    ("image.digest", {"image.requireDigest": True}),
    ("/image/digest", {"image.digest": "0.1.0"}),
    ("/image/tag", {"image.tag": 0.1}),
    ("/gc/schedule", {"gc.enabled": True, "gc.schedule": "every night"}),
    ("/triggers/tickets/schedule", {"triggers": {"tickets": {**TRIGGER, "schedule": "*/15 * * *"}}}),
    ("triggers.tickets.schedule", {"triggers": {"tickets": TRIGGER}}),
    ("/triggers", {"triggers": {"Tickets of today": {**TRIGGER, "schedule": "@daily"}}}),
    ("/triggers/t/config/epocs", {"triggers": {"t": merged(TRIGGER, {"schedule": "@daily", "config.epocs": 2})}}),
    ("/triggers/t/config/options/train_qlora/batch_token",
     {"triggers": {"t": merged(TRIGGER, {"schedule": "@daily", "config.options.train_qlora.batch_token": 1})}}),
    ("/triggers/t/sensor", {"triggers": {"t": {**TRIGGER, "sensor": {"event": "new"}}}}),
    ("/modelCache/size", {"modelCache.size": "200GiB"}),
    ("/gpuPool/quota/gpus", {"gpuPool.quota.gpus": "four"}),
    ("networkPolicy.kubernetesApi.peers", {"networkPolicy.enabled": True}),
    ("networkPolicy.store.peers", {
        "networkPolicy.enabled": True,
        "networkPolicy.kubernetesApi.peers": [{"ipBlock": {"cidr": "10.96.0.1/32"}}],
        "networkPolicy.mlflow.peers": [{"podSelector": {}}],
    }),
    ("/networkPolicy/store/peers/0", {"networkPolicy.store.peers": [{"cidr": "10.0.0.0/8"}]}),
    ("/runAsUser", {"runAsUser": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "changes"), REFUSED, ids=[f"{path}-{at}" for at, (path, _) in enumerate(REFUSED)])
def test_what_would_fail_later_is_refused_with_its_path(path: str, changes: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError) as refused:
        render(merged(values("minimal"), changes))
    said = str(refused.value)
    parent, _, last = path.rpartition("/")
    assert (
        f"'{path}'" in said
        or f"{path}: " in said
        or (" " in path and path in said)
        or (f"'{parent}'" in said and f"'{last}'" in said)
    ), said


@pytest.mark.parametrize(
    "schedule",
    ["* * * * *", "*/15 * * * *", "0 3 * * 0", "0 0,12 1 */2 *", "5-59/10 8-18 * * mon-fri", "0 0 ? JAN SUN", "@daily"],
)
def test_cron_as_kubernetes_takes_it(schedule: str) -> None:
    render(merged(values("minimal"), {"gc.enabled": True, "gc.schedule": schedule}))


@pytest.mark.parametrize(
    "schedule",
    ["", "* * * *", "* * * * * *", "60 * * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "@often",
     "TZ=UTC 0 3 * * *", "a b c d e"],
)  # fmt: skip
def test_what_is_no_cron(schedule: str) -> None:
    with pytest.raises(helm.HelmValuesError, match="/gc/schedule"):
        render(merged(values("minimal"), {"gc.schedule": schedule}))


def test_lint_passes_before_anything_is_set() -> None:
    assert helm.lint(str(CHART), {})["errors"] == []


def test_schema_is_draft_07_and_knows_exactly_the_values_there_are() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"

    def same(given: dict[str, Any], described: dict[str, Any], path: str) -> None:
        described = schema["definitions"][described["$ref"].rpartition("/")[2]] if "$ref" in described else described
        if not described.get("properties"):
            return
        assert described["additionalProperties"] is False, path
        assert set(given) == set(described["properties"]) - ({"global"} if not path else set()), path
        for key, value in given.items():
            if isinstance(value, dict):
                same(value, described["properties"][key], f"{path}/{key}")

    same(chart().values, schema, "")


def test_the_examples_of_runs_are_ones_that_the_trigger_takes() -> None:
    for trigger in values("full")["triggers"].values():
        RunConfig.parse(**trigger["config"])


# Another valid value for each one that no rule below gives; and what must be on for a value to matter.
OTHERS: dict[str, Any] = {
    "store.uri": "s3://other/prefix", "store.s3Endpoint": "https://other", "store.modelsUri": "s3://other",
    "store.azureEndpoint": "https://other", "store.azureAccount": "other",
    "store.mlflowS3Endpoint": "https://other", "image.registry": "other/place", "image.digest": f"sha256:{'0' * 64}",
    "image.pullPolicy": "Always", "imagePullSecrets": ["other"], "kfp.endpoint": "https://other",
    "kfp.uiUrl": "https://other", "pipeline.disk": "9Gi",
    "gc.schedule": "@daily", "mlflow.auth.defaultPermission": "EDIT", "mlflow.database.host": "other",
    "mlflow.database.sslMode": "prefer", "mlflow.artifacts": "s3://other", "mlflow.externalUri": "https://other",
    "mlflow.allowedHosts": ["other"],
    "modelCache.accessModes": ["ReadWriteOnce"], "gpuPool.quota.resource": "amd.com/gpu",
    "gpuPool.priorityClass.preemptionPolicy": "PreemptLowerPriority", "tolerations": [{"operator": "Exists"}],
    "triggers": {"other": {**TRIGGER, "schedule": "@daily"}},
}  # fmt: skip
CONTEXT: dict[str, dict[str, Any]] = {
    "image.tag": {"image.digest": "", "image.requireDigest": False},
    "image.requireDigest": {"image.digest": "", "image.requireDigest": False},
    "mlflow.externalUri": {"mlflow.enabled": False, "mlflow.externalUri": "https://m",
                           "mlflow.ingress.enabled": False, "networkPolicy.enabled": False},
    "networkPolicy.mlflow.peers": {"mlflow.enabled": False, "mlflow.externalUri": "https://m",
                                   "mlflow.ingress.enabled": False,
                                   "networkPolicy.mlflow.peers": [{"podSelector": {}}]},
    "mlflow.persistence": {"mlflow.database": {}, "mlflow.replicas": 1},
}  # fmt: skip
CONTEXT["networkPolicy.mlflow.ports"] = CONTEXT["networkPolicy.mlflow.peers"]


def _paths(given: dict[str, Any], above: str = "") -> list[str]:
    return [
        path
        for key, value in given.items()
        for path in (_paths(value, f"{above}{key}.") if isinstance(value, dict) and value else [f"{above}{key}"])
    ]


@pytest.mark.parametrize("path", _paths(yaml.safe_load((CHART / "values.yaml").read_text())))
def test_every_value_changes_something(path: str) -> None:
    context = next((changes for start, changes in CONTEXT.items() if path.startswith(start)), {})
    base = merged(values("full"), context)
    now: Any = chart().merge_values(base)
    for key in path.split("."):
        now = now[key]
    if path in OTHERS:
        other = OTHERS[path]
    elif isinstance(now, bool):
        other = not now
    elif isinstance(now, int | float):
        other = now + 1
    elif isinstance(now, dict):
        other = {"other": "value"}
    elif path.endswith("ports"):
        other = [4444]
    elif path.endswith(("peers", "clients")):
        other = [{"podSelector": {"matchLabels": {"other": "value"}}}]
    elif re.fullmatch(r"[0-9]+(m|[MGT]i)", now):
        other = f"9{now}"
    else:
        other = "other"
    before = chart().render(base, name="qlora")
    try:
        after = chart().render(merged(base, {path: other}), name="qlora")
    except helm.HelmError as refused:
        after = {"refused": str(refused)}
        assert path in ("mlflow.enabled", "mlflow.auth.enabled", "image.requireDigest"), refused
    assert before != after
