"""What the chart makes, over several values files: valid, secured, and in agreement with the pipeline's placement."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hera.events.models import Sensor

from qlora_pipelines.components import images
from qlora_pipelines.pipelines import placement
from tests.charts.rendering import (
    CHART,
    EXAMPLES,
    NAMESPACE,
    RELEASE,
    Object,
    chart,
    helm,
    jobs,
    merged,
    name,
    of_kind,
    pods,
    render,
    values,
)

KUBERNETES = ("1.30", "1.37")
"""The oldest that Chart.yaml admits, and the newest whose schemas are installed."""
WITHOUT_SCHEMA = {"Sensor"}
"""Kinds that no Kubernetes schema describes: compared with hera's models of Argo Events."""


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> dict[str, Any]:
    return values(request.param)


@pytest.fixture
def objects(example: dict[str, Any]) -> list[Object]:
    return render(example)


def test_lint_finds_nothing(example: dict[str, Any]) -> None:
    report = helm.lint(str(CHART), example, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_kubernetes_takes_each_object(objects: list[Object], kubernetes: str) -> None:
    for found in [*objects, *jobs(objects)]:
        if found["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(found, kubernetes, strict=True)


def test_names_of_digits_and_large_numbers_stay_what_they_are() -> None:
    # YAML would read the name 123 as a number, and Helm writes 1000000 as 1e+06.
    changes = {
        "serviceAccount.name": "123", "runs.serviceAccount.name": "124", "imagePullSecrets": ["1"],
        "modelCache.name": "2", "modelCache.storageClass": "3", "kfp.caConfigMap": "4", "kfp.tokenAudience": "5",
        "mlflow.auth.adminSecret": "6", "mlflow.database.secret": "7", "gpuPool.priorityClass.name": "8",
        "mlflow.ingress": {"enabled": True, "host": "9", "tlsSecret": "10", "className": "11"},
        "triggers.mails.sensor": {"eventSource": "12", "event": "13", "eventBus": "14"},
        "runAsUser": 1000650000, "jobs.timeoutSeconds": 2000000, "gpuPool.priorityClass.value": 1000000,
        "triggers.tickets.minNewRows": 3000000, "triggers.tickets.config.seed": 4000000,
    }  # fmt: skip
    objects = render(merged(values("full"), changes), release="20000000")
    for found in [*objects, *jobs(objects)]:
        if found["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(found, KUBERNETES[-1], strict=True)
    text = "".join(chart().render(merged(values("full"), changes), name=RELEASE).values())
    assert not re.search(r"\de\+0\d", text)
    for number in ("runAsUser: 1000650000", "Seconds: 2000000", "value: 1000000", '"3000000"', '"seed": 4000000'):
        assert number in text


def test_argo_events_knows_every_field_of_a_sensor() -> None:
    [sensor] = of_kind(render(values("full")), "Sensor")
    resource = sensor["spec"]["triggers"][0]["template"]["k8s"].pop("source")
    assert list(resource["resource"]) == ["apiVersion", "kind", "metadata", "spec"]  # Kubernetes' schema above
    understood = Sensor.model_validate(sensor).model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert understood["spec"] == sensor["spec"]


def test_no_two_objects_clash(objects: list[Object]) -> None:
    names = [name(found) for found in objects]
    assert len(set(names)) == len(names)


def test_versions_are_the_projects() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == version("qlora-pipelines")
    assert f"image: {images.CPU}\n" in about["annotations"]["artifacthub.io/images"]
    used = {each["image"] for pod in pods(render(values("trial"))) for each in pod.containers}
    assert used == {images.CPU}


def test_by_default_nothing_costs_money_or_opens_a_door() -> None:
    assert [name(found) for found in render(values("minimal"))] == [
        "ConfigMap/qlora-pipelines",
        "ServiceAccount/qlora",
        "Role/qlora-kfp",
        "RoleBinding/qlora-kfp",
        "Pod/qlora-check",
        *[name(found) for found in of_kind(render(values("minimal")), "Job")],
    ]


def test_every_object_is_labelled_and_no_selector_holds_a_version(objects: list[Object]) -> None:
    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "qlora-pipelines", name(found)
        assert labels["app.kubernetes.io/instance"] == RELEASE
        assert labels["app.kubernetes.io/part-of"] == "qlora-pipelines"
        assert found["metadata"].get("namespace", NAMESPACE) == NAMESPACE
    for found in of_kind(objects, "Deployment"):
        selector = found["spec"]["selector"]["matchLabels"]
        assert set(selector) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
        assert selector.items() <= found["spec"]["template"]["metadata"]["labels"].items()
        [service] = of_kind(objects, "Service")
        assert service["spec"]["selector"] == selector


def test_pods_are_restricted(objects: list[Object]) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards, and a root that cannot be written.
    for pod in pods(objects):
        spec = pod.spec
        assert spec["automountServiceAccountToken"] is False, pod.owner
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == placement.USER
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all(set(volume) <= {"name", "emptyDir", "configMap", "secret", "projected", "persistentVolumeClaim"}
                   for volume in spec["volumes"])  # fmt: skip
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert container["resources"]["limits"].keys() == {"memory"}
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]}
            assert {"name": "HOME", "value": "/tmp"} in container["env"]
    for sensor in of_kind(objects, "Sensor"):
        template = sensor["spec"]["template"]
        assert template["securityContext"]["runAsNonRoot"] is True
        assert template["container"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_config_map_is_the_one_that_steps_read() -> None:
    found = next(each for each in of_kind(render(values("full")), "ConfigMap"))
    assert found["metadata"]["name"] == placement.CONFIG_MAP
    assert sorted(found["data"]) == sorted(
        placement.CONFIG_KEYS + placement.REGISTRY_KEYS + placement.NOTIFY_CONFIG_KEYS
    )
    assert found["data"]["QLORA_SIGNING_KEY"] == f"{placement.SIGNING_FOLDER}/signing.pem"
    assert found["data"]["GOOGLE_APPLICATION_CREDENTIALS"] == f"{placement.GCS_FOLDER}/key.json"


def test_what_pods_refer_to_is_there(example: dict[str, Any], objects: list[Object]) -> None:
    there = {name(found) for found in objects} | {"ServiceAccount/default"}
    there |= {f"ConfigMap/{example.get('kfp', {}).get('caConfigMap')}"}
    for pod in pods(objects):
        assert f"ServiceAccount/{pod.spec['serviceAccountName']}" in there, pod.owner
        for container in pod.containers:
            for source in container.get("envFrom", []):
                assert f"ConfigMap/{source['configMapRef']['name']}" in there
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                assert f"ConfigMap/{volume['configMap']['name']}" in there
            if "persistentVolumeClaim" in volume:
                assert f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}" in there
    for binding in of_kind(objects, "RoleBinding"):
        assert f"Role/{binding['roleRef']['name']}" in there
        assert {f"ServiceAccount/{subject['name']}" for subject in binding["subjects"]} <= there


def test_rights_are_few_and_within_the_namespace_but_for_nodes(example: dict[str, Any], objects: list[Object]) -> None:
    roles = [role["rules"] for role in of_kind(objects, "ClusterRole")]
    asked = example.get("runs", {}).get("listNodes", False)
    assert roles == ([[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]] if asked else [])
    assert len(of_kind(objects, "ClusterRoleBinding")) == len(roles)
    for role in of_kind(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            # What a launcher updates is its run in KFP's API; in Kubernetes' there is nothing of that name.
            own = {"update"} if rule["apiGroups"] == ["pipelines.kubeflow.org"] else set()
            assert not ({"delete", "update", "impersonate", "escalate", "bind"} - own) & set(rule["verbs"])
            if {"secrets", "configmaps"} & set(rule["resources"]):
                assert rule["verbs"] == ["get"]
                assert rule["resourceNames"]


def test_the_runs_service_account_may_report_to_kfp() -> None:
    """In multi-user mode without ML Metadata: pipeline-runner-role.yaml of kubeflow/pipelines #13986."""
    objects = render(merged(values("minimal"), {"runs": {"serviceAccount": {"create": True}}}))
    [role] = [role for role in of_kind(objects, "Role") if role["metadata"]["name"].endswith("-runs")]
    rights = {tuple(rule["resources"]): rule["verbs"] for rule in role["rules"]
              if rule["apiGroups"] == ["pipelines.kubeflow.org"]}  # fmt: skip
    assert rights == {("runs",): ["get", "list", "update"], ("artifacts",): ["get", "list", "create"]}


@pytest.mark.parametrize(
    ("account", "names"),
    [
        ({}, ["pipeline-runner", "default-editor"]),  # of Kubeflow's own manifests: one user, and several
        ({"create": True}, ["qlora-runs"]),
        ({"name": "trainer"}, ["trainer"]),
        ({"create": True, "name": "trainer"}, ["trainer"]),
    ],
)
def test_the_runs_service_account_may_list_nodes(account: dict[str, Any], names: list[str]) -> None:
    objects = render(merged(values("minimal"), {"runs": {"listNodes": True, "serviceAccount": account}}))
    [role], [binding] = of_kind(objects, "ClusterRole"), of_kind(objects, "ClusterRoleBinding")
    assert role["metadata"]["name"] == binding["roleRef"]["name"] == f"{RELEASE}-{NAMESPACE}-nodes"
    subjects = [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE} for name in names]
    assert binding["subjects"] == subjects


def test_kfp_gets_a_token_of_its_own_audience() -> None:
    for pod in pods(render(values("full"))):
        tokens = [volume["projected"]["sources"][0]["serviceAccountToken"] for volume in pod.spec["volumes"]
                  if "projected" in volume]  # fmt: skip
        without = pod.labels["app.kubernetes.io/component"] in ("gc", "mlflow", "mlflow-user")
        wanted = [] if without else ["pipelines.kubeflow.org"]
        assert [token["audience"] for token in tokens] == wanted, pod.owner


def test_the_package_makes_the_same(tmp_path: Path) -> None:
    with helm.Chart.load(helm.package(str(CHART), destination=str(tmp_path))) as packaged:
        assert packaged.render(values("full"), name=RELEASE) == chart().render(values("full"), name=RELEASE)
        assert {"README.md", "files/check.py"} <= {found["name"] for found in packaged.files}
