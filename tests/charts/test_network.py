"""Who may reach what, read from the network policies as Kubernetes reads them: all that select a pod, added up."""

from typing import Any

import pytest

from qlora_pipelines.pipelines import placement
from tests.charts.rendering import Object, merged, of_kind, pods, render, values

Labels = dict[str, str]
FULL = values("full")
POLICY = FULL["networkPolicy"]
DNS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
KFP = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kubeflow"}}}
MLFLOW_LABELS = {"app.kubernetes.io/name": "qlora-pipelines", "app.kubernetes.io/instance": "qlora",
                 "app.kubernetes.io/component": "mlflow"}  # fmt: skip


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return render(FULL)


def selects(selector: dict[str, Any], labels: Labels) -> bool:
    """Whether a label selector selects a pod; an empty one selects all."""
    for expression in selector.get("matchExpressions", []):
        value, there = labels.get(expression["key"]), expression["key"] in labels
        if not {"Exists": there, "In": value in expression.get("values", [])}[expression["operator"]]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def rules(objects: list[Object], labels: Labels, direction: str) -> list[dict[str, Any]]:
    """All rules in one direction for a pod; it must be selected by a policy, or it may do everything."""
    policies = [policy["spec"] for policy in of_kind(objects, "NetworkPolicy")]
    found = [each for each in policies if direction in each["policyTypes"] and selects(each["podSelector"], labels)]
    assert found, f"no policy selects {labels}"
    return [rule for policy in found for rule in policy.get(direction.lower(), [])]


def destinations(objects: list[Object], labels: Labels) -> set[str]:
    """The names of what a pod may reach."""
    known = [
        ("dns", DNS), ("kfp", KFP), ("mlflow", {"podSelector": {"matchLabels": MLFLOW_LABELS}}),
        *[(name, POLICY[name]["peers"][0])
          for name in ("store", "identity", "kubernetesApi", "hub", "notify", "database")],
    ]  # fmt: skip
    reached = []
    for rule in rules(objects, labels, "Egress"):
        assert rule["to"] and rule["ports"], "an empty list would mean everywhere"
        reached += [name for peer in rule["to"] for name, each in known if each == peer] or [str(rule)]
    return set(reached)


@pytest.mark.parametrize("step", placement.STEPS)
def test_steps_reach_what_they_need(objects: list[Object], step: str) -> None:
    labels = {placement.STEP_LABEL: step.replace("_", "-"), "pipelines.kubeflow.org/v2_component": "true"}
    needs = placement.STEPS[step]
    own = {name for name, wanted in (("hub", needs.hub), ("notify", needs.notifies)) if wanted}
    assert destinations(objects, labels) == {"dns", "store", "identity", "kfp", "mlflow", "kubernetesApi"} | own
    assert rules(objects, labels, "Ingress") == []


def test_kfp_is_reached_by_both_its_protocols(objects: list[Object]) -> None:
    """8887 is gRPC: driver and launcher of every step use it where there is no ML Metadata. 8888 is for clients."""
    steps = [{placement.STEP_LABEL: step.replace("_", "-")} for step in placement.STEPS]
    without = {"mlflow", "mlflow-user"}
    clients = [pod.labels for pod in pods(objects) if pod.labels["app.kubernetes.io/component"] not in without]
    for labels in steps + clients:
        [rule] = [rule for rule in rules(objects, labels, "Egress") if KFP in rule["to"]]
        assert {8887, 8888} <= {port["port"] for port in rule["ports"]}


def test_the_charts_pods_reach_what_they_need(objects: list[Object]) -> None:
    job = {"dns", "store", "identity", "kfp", "mlflow"}
    server = {"dns", "store", "identity", "database"}
    wanted = {"upload": job, "gc": job, "test": job, "trigger": job | {"hub"}, "mlflow": server}
    wanted |= {"mlflow-user": {"dns", "mlflow"}}
    seen = set()
    for pod in pods(objects):
        component = pod.labels["app.kubernetes.io/component"]
        seen.add(component)
        assert destinations(objects, pod.labels) == wanted[component], pod.owner
        if component != "mlflow":
            assert rules(objects, pod.labels, "Ingress") == []
    assert seen == wanted.keys()


def test_mlflow_is_reached_by_the_release_the_steps_and_named_clients(objects: list[Object]) -> None:
    [rule] = rules(objects, MLFLOW_LABELS, "Ingress")
    peers = rule["from"]
    assert peers[2:] == POLICY["mlflow"]["clients"]
    selectors = [peer["podSelector"] for peer in peers[:2]]
    assert all(any(selects(selector, pod.labels) for selector in selectors) for pod in pods(objects))
    assert any(selects(selector, {placement.STEP_LABEL: "train-qlora"}) for selector in selectors)
    assert not any(selects(selector, {"app": "another"}) for selector in selectors)


def test_other_pods_are_left_alone(objects: list[Object]) -> None:
    for policy in of_kind(objects, "NetworkPolicy"):
        assert not selects(policy["spec"]["podSelector"], {"pipelines.kubeflow.org/v2_component": "true"})


@pytest.mark.parametrize(("name", "step"), [("hub", "plan-run"), ("identity", "plan-run"), ("notify", "notify")])
def test_what_is_not_named_is_closed(name: str, step: str) -> None:
    without = render(merged(FULL, {f"networkPolicy.{name}": {}}))
    assert name not in destinations(without, {placement.STEP_LABEL: step})


def test_an_external_mlflow_is_reached_where_it_is() -> None:
    there = {"ipBlock": {"cidr": "198.51.100.7/32"}}
    given = merged(
        FULL, {"mlflow": {"externalUri": "https://mlflow.example.com"}, "networkPolicy.mlflow": {"peers": [there]}}
    )
    reached = rules(render(given), {placement.STEP_LABEL: "train-qlora"}, "Egress")
    assert {"to": [there], "ports": [{"port": 443, "protocol": "TCP"}]} in reached
