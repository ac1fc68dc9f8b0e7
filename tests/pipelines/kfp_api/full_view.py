"""A run as a server without ML Metadata writes it: `tasks` only in the full view, each as its launcher reported it."""

import uuid
from typing import Any

import kfp_server_api as api

WIRE = api.ApiClient()
GROUPS = {"root": "ROOT", "fine-tuning": "DAG", "exit-handler-1": "DAG", "condition-2": "CONDITION_BRANCH"}


def reported(name: str, state: str, *pods: str, error: str = "", kind: str = "RUNTIME", **more: Any) -> dict[str, Any]:
    """A task; `pods`: those of the tries that came to an end. The driver's is always there."""
    listed = [{"name": f"driver-of-{name}", "uid": "1", "type": "DRIVER"}]
    listed += [{"name": pod, "uid": "2", "type": "EXECUTOR"} for pod in pods]
    return {
        "name": "ROOT" if kind == "ROOT" else name,
        "display_name": f"{name} as its author calls it",
        "task_id": str(uuid.uuid4()),
        "type": kind,
        "state": state,
        "scope_path": f"root.{name}",
        "pods": listed,
        "create_time": "2026-01-01T12:00:00Z",
        **({"status_metadata": {"message": error}} if error else {}),
        **more,
    }


def of_nodes(nodes: list[api.V2beta1PipelineTaskDetail]) -> list[dict[str, Any]]:
    """The tasks of a run that 2.17 would list as these nodes: drivers and executors are none."""
    tasks = []
    for node in nodes:
        name = node.display_name
        if name == "executor" or name.endswith("-driver"):
            continue
        pods = [node.pod_name, *(child.pod_name for child in node.child_tasks or [])]
        times = {"create_time": node.start_time, "end_time": node.end_time}
        tasks.append(
            reported(
                name,
                node.state,
                *(pod for pod in pods if pod),
                error=node.error.message if node.error else "",
                kind=GROUPS.get(name, "RUNTIME"),
                **{key: f"{time:%Y-%m-%dT%H:%M:%SZ}" for key, time in times.items() if time},
            )
        )
    return tasks


def run(found: api.V2beta1Run, view: str) -> dict[str, Any]:
    """The run's JSON; its `tasks` are those that `Kfp.life` gives, or made of its nodes."""
    written: dict[str, Any] = WIRE.sanitize_for_serialization(found)
    written.pop("run_details", None)
    details = found.run_details.task_details if found.run_details else []
    tasks = getattr(found, "tasks", None) or of_nodes(details)
    return written | {"task_count": len(tasks)} | ({"tasks": tasks} if view == "FULL" and tasks else {})
