"""A run's tasks in one form, whichever way Kubeflow's API has them.

Up to 2.17 they are Argo's nodes: drivers, executors and groups too. Servers without ML Metadata (kubeflow/pipelines
#13986) list the pipeline's tasks with what the driver and the launcher reported of each. Nobody reports for a pod that
was killed, so there the run's own state has the last word.
"""

import datetime
from typing import Any, NamedTuple

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from qlora_pipelines.pipelines.kfp_api import runs
from qlora_pipelines.pipelines.kfp_api.client import Server

STEP_TYPES = ("RUNTIME", "IMPORTER")
"""Types of the tasks that have a pod. The others are groups."""


class Task(NamedTuple):
    """A task of a run.

    Attributes:
        name: its name in the compiled pipeline, or Argo's name of a node.
        state: the last one that is known, '' where there is none yet.
        created: when it was listed first.
        started: when it began; a server without ML Metadata has only the start of the driver.
        ended: when it ended.
        pods: its pods by name, the last try last.
        error: why it failed, as the server says, or ''.
        stopped: it had reported no end when the run ended: its pod was killed, or never started.
        may_go_on: it failed, but the run goes on and may try it again.
    """

    name: str
    state: str
    created: datetime.datetime | None = None
    started: datetime.datetime | None = None
    ended: datetime.datetime | None = None
    pods: tuple[str, ...] = ()
    error: str = ""
    stopped: bool = False
    may_go_on: bool = False


def fetch(server: Server, run_id: str) -> tuple[V2beta1Run, list[Task]]:
    """A run and its tasks at one moment.

    Raises:
        NotFound: there is no such run.
        InputError: the server does not answer.
    """
    run, listed = server.run(run_id)
    return run, of(run, listed)


def of(run: V2beta1Run, listed: list[dict[str, Any]]) -> list[Task]:
    """The tasks of a run, the earliest first.

    Args:
        run: the run.
        listed: `tasks` of the run's full view, which only servers without ML Metadata have.
    """
    nodes = (run.run_details.task_details if run.run_details else None) or []
    tasks = [_of_reports(run, task) for task in listed] or [_of_node(node) for node in nodes]
    start = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    return sorted(tasks, key=lambda task: task.created or start)


def _of_node(node: V2beta1PipelineTaskDetail) -> Task:
    pods = [node.pod_name, *(child.pod_name for child in node.child_tasks or [])]
    return Task(
        name=node.display_name or "",
        state=node.state or "",
        created=node.create_time,
        started=node.start_time,
        ended=node.end_time,
        pods=tuple(pod for pod in pods if pod),
        error=message(node),
    )


def _of_reports(run: V2beta1Run, task: dict[str, Any]) -> Task:
    state, over = str(task.get("state", "")), run.state in runs.FINAL_STATES
    stopped = over and state == "RUNNING" and task.get("type") in STEP_TYPES
    if stopped:
        state = "CANCELED" if runs.state(run) == "CANCELED" else "FAILED"
    created = _time(task.get("create_time"))
    # The message of a try that failed stays with a task whose next try succeeded.
    said = (task.get("status_metadata") or {}).get("message", "") if state == "FAILED" else ""
    # The driver's log says nothing of the step.
    pods = [pod.get("name", "") for pod in task.get("pods") or [] if pod.get("type") == "EXECUTOR"]
    return Task(
        name=str(task.get("name", "")),
        state=state,
        created=created,
        started=created,
        ended=_time(task.get("end_time")),
        pods=tuple(pods),
        error="" if stopped else str(said).strip(),
        stopped=stopped,
        may_go_on=state == "FAILED" and not over,
    )


def message(item: Any) -> str:
    """The message of the error of a run or of a node, or ''."""
    for error in [item.error, *(status.error for status in reversed(item.state_history or []))]:
        if error and (said := str(error.message or "").strip()):
            return said
    return ""


def _time(text: str | None) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
