"""What Argo knows of a step's pods, from the Workflow that the server keeps.

A server without ML Metadata lists a pod only when its launcher has reported an end. For a pod that was killed, Argo has
the name and the reason. Only the v1beta1 API gives the Workflow out; where it does not, there is less to say.
"""

import json
import re
from typing import Any, NamedTuple

from qlora_pipelines.pipelines.kfp_api.client import Server


class Pod(NamedTuple):
    """A pod of a step: its name, and what Argo says of its end, or ''."""

    name: str
    message: str


def of_step(server: Server, run_id: str, task: str) -> list[Pod]:
    """The pods of a step's tries, the earliest first; none where the server does not give them.

    Args:
        server: where it ran.
        run_id: the run.
        task: the step's name in the compiled pipeline.
    """
    # WORKFLOW(0).root(0).TASK(0).executor(0): each level has a number where Argo may retry it.
    step = re.compile(rf"\.{re.escape(task)}(\(\d+\))?\.executor(\(\d+\))?")
    found = [node for node in _pods(server, run_id) if step.search(str(node.get("name")))]
    found.sort(key=lambda node: str(node.get("startedAt") or ""))
    # Pods that newer servers start have the node's id as their name.
    return [Pod(str(node.get("id", "")), str(node.get("message") or "").strip()) for node in found]


def failures(server: Server, run_id: str) -> list[str]:
    """A line on each pod that failed, the earliest first; none where the server does not give them."""
    failed = [node for node in _pods(server, run_id) if node.get("phase") in ("Failed", "Error")]
    failed.sort(key=lambda node: str(node.get("startedAt") or ""))
    said = [(str(node.get("displayName")), str(node.get("message") or "").strip()) for node in failed]
    return [f"{name}: {message}" for name, message in said if message]


def _pods(server: Server, run_id: str) -> list[dict[str, Any]]:
    try:
        workflow = json.loads(json.loads(server.run_v1(run_id))["pipeline_runtime"]["workflow_manifest"])
        return [node for node in workflow["status"]["nodes"].values() if node.get("type") == "Pod"]
    except (ValueError, KeyError, TypeError, AttributeError):  # another server, or nodes that Argo compressed
        return []
