"""Whether the cluster has a node for the pods of training and evaluation: without one they stay Pending, silently."""

import os
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.errors import first_line

POD_VARIABLE = "ARGO_NODE_ID"
"""Argo sets it in the pods of its workflows, and every run on Kubeflow is one. A notebook's pod plans no pods."""
TIMEOUT = 4.0
"""Seconds to connect to the cluster's API, and as many to wait for its answer."""
NOT_SCHEDULED = ("NoSchedule", "NoExecute")
"""Effects of a taint that keep a pod off a node; PreferNoSchedule does not."""

Node = dict[str, Any]


def check(config: PlacedRun) -> tuple[str, str] | None:
    """Level and text of a finding; None outside a run's pod. Never fatal: a node may join later.

    Args:
        config: the whole run.
    """
    if POD_VARIABLE not in os.environ:
        return None
    from kubernetes import client  # kfp needs it, so the image of this step has it

    try:
        return verdict(_list(), config)
    except Exception as error:  # whatever it is: the run can go on without this check
        why = first_line(error).rsplit(">: ", 1)[-1]  # without the object that urllib3 names
        if isinstance(error, client.ApiException):
            why = f"the cluster's API says {error.status} {error.reason}"
            if error.status == 403:
                why = "the run's service account may not list them; the chart's value runs.listNodes lets it"
        return "ok", f"not checked: {why}"


def _list() -> list[Node]:
    """All nodes, by the rights of the pod's service account, as the API writes them."""
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_incluster_config(settings)
    settings.retries = False
    settings.proxy = None  # one for the way out of the cluster
    with client.ApiClient(settings) as api:
        # Not through CoreV1Api: its models take seconds to build for a thousand nodes. Version 0 is the API server's
        # memory, which costs the cluster nothing.
        answer, _, _ = api.call_api(
            "/api/v1/nodes",
            "GET",
            query_params=[("resourceVersion", "0")],
            auth_settings=["BearerToken"],
            response_type="object",
            _request_timeout=(TIMEOUT, TIMEOUT),
        )
    return list(answer["items"])


def verdict(nodes: list[Node], config: PlacedRun) -> tuple[str, str]:
    """Whether a node could take the run's largest pod, were it empty: level and text of a finding.

    Args:
        nodes: as the API writes them.
        config: the whole run.
    """
    waits = "the pods of training and evaluation will stay Pending until such a node joins (an autoscaler may add one)"
    left = nodes
    asked: list[str] = []
    for what, fitting in _narrowed(nodes, config):
        left, asked = fitting, [*asked, what]
        if not left:
            return "warning", f"none of the cluster's nodes ({len(nodes)}) has {', '.join(asked)}: {waits}"
    taints = [_not_tolerated(node, config) for node in left]
    if all(taints):
        named = ", ".join(sorted({taint for each in taints for taint in each}))
        return "warning", f"each node that has {', '.join(asked)} has a taint without a toleration ({named}): {waits}"
    return "ok", f"{taints.count([])} of {len(nodes)} could take the pods of training and evaluation"


def _narrowed(nodes: list[Node], config: PlacedRun) -> Iterator[tuple[str, list[Node]]]:
    """One thing after the other that the pods ask for, and the nodes that have it and all before it."""
    from kubernetes import utils

    if config.node_selector:
        wanted = config.node_selector.items()
        nodes = [node for node in nodes if wanted <= node["metadata"].get("labels", {}).items()]
        yield " ".join(["label", *(f"{key}={value}" for key, value in wanted)]), nodes
    requests = {config.resource(): config.gpu_count, "memory": config.memory, "cpu": config.cpu}
    for resource, amount in requests.items():
        if resource:
            needed = utils.parse_quantity(amount)
            nodes = [node for node in nodes if utils.parse_quantity(_allocatable(node).get(resource, "0")) >= needed]
            yield f"{resource} {amount}", nodes


def _allocatable(node: Node) -> dict[str, str]:
    return node["status"].get("allocatable") or {}  # one that has just joined has none yet


def _not_tolerated(node: Node, config: PlacedRun) -> list[str]:
    """The node's taints that keep the pods off it, as kubectl writes them."""
    return [
        f"{taint['key']}{'=' + taint['value'] if taint.get('value') else ''}:{taint['effect']}"
        for taint in node["spec"].get("taints", [])
        if taint["effect"] in NOT_SCHEDULED
        and not any(_tolerates(toleration, taint) for toleration in config.all_tolerations())
    ]


def _tolerates(toleration: dict[str, Any], taint: dict[str, str]) -> bool:
    """As Kubernetes compares them: what a toleration leaves empty is any."""
    return (
        toleration.get("effect", "") in ("", taint["effect"])
        and toleration.get("key", "") in ("", taint["key"])
        and (toleration.get("operator") == "Exists" or toleration.get("value", "") == taint.get("value", ""))
    )
