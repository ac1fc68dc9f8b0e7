"""Follows a run. kfp's own wait does not raise where a run failed, and never ends where one was cancelled."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

from kfp_server_api import V2beta1Run

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import failures, run_tasks, runs
from qlora_pipelines.pipelines.kfp_api.client import NotFound, Server
from qlora_pipelines.pipelines.kfp_api.run_tasks import Task
from qlora_pipelines.pipelines.tasks import NOTIFY, REGISTER, End

POLL_INTERVAL = 5.0
"""Seconds between two requests for the run's state."""
RETRY_TIMEOUT = 900.0
"""Seconds without an answer after which a run is no longer followed. It goes on."""


class FinishedRun(NamedTuple):
    """How a run ended: the step that failed, the last lines of its log, and the last state of each step."""

    outcome: End
    failed_step: str
    last_lines: list[str]
    steps: dict[str, str]


def follow(server: Server, run_id: str, pipeline: Compiled, say: Callable[[str], None]) -> FinishedRun:
    """Waits until the run has ended, and reports each change of the run's and the steps' states.

    Args:
        server: where it runs.
        run_id: the run.
        pipeline: what it runs, for the names of its steps.
        say: takes a line.

    Raises:
        InputError: the run is no longer there, or the server has not answered for too long.
    """
    server.retry_timeout = max(server.retry_timeout, RETRY_TIMEOUT)
    states: dict[str, str] = {}
    run_states = [""]
    while True:
        run, tasks = _get(server, run_id)
        steps = _steps(tasks, pipeline)
        for name, task in steps.items():
            if task.state and states.get(name) != task.state:
                states[name] = task.state
                again = "; it may be tried again" if task.may_go_on else ""
                say(f"{name:<20}  {task.state.lower()}{_took(task)}{again}")
        if run.state and run.state != run_states[-1]:
            run_states.append(run.state)
            say(f"{'run':<20}  {run.state.lower()}")
        if run.state in runs.FINAL_STATES:
            break
        time.sleep(POLL_INTERVAL)
    if "CANCELING" in run_states or runs.state(run) == "CANCELED":
        return FinishedRun(End.CANCELLED, "", [], states)
    # A run in which an exit task succeeded has been called SUCCEEDED although a step in it failed (kubeflow/pipelines
    # #11405). Whether people were told of the run is no part of how it ended.
    told = pipeline.steps.get(NOTIFY, "")
    # A step that says that it failed comes before one that was stopped, perhaps because of that.
    failed = sorted(
        (name for name, task in steps.items() if task.state == "FAILED"),
        key=lambda name: (name == told, steps[name].stopped),
    )
    if run.state == "FAILED" or (failed and failed[0] != told):
        first = failed[0] if failed else ""
        return FinishedRun(End.FAILED, first, failures.why(server, run, pipeline, steps, first), states)
    rejected = steps and REGISTER in pipeline.steps and not _registered(run, tasks, states, pipeline.steps[REGISTER])
    return FinishedRun(End.GATE_SAID_NO if rejected else End.DONE, "", [], states)


def _registered(run: V2beta1Run, tasks: list[Task], states: dict[str, str], registration: str) -> bool:
    """Whether a run that succeeded registered a model; one that the gate rejects ends without an error.

    Raises:
        InputError: the server does not say. Of a workflow of more than 1 MiB, one that lists Argo's nodes no longer
            sees how the steps go on.
    """
    if states.get(registration) == "SUCCEEDED":
        return True
    nodes = {task.name: task.state for task in tasks}
    if nodes.get("root", "") not in ("RUNNING", "PENDING"):
        return False
    if any(name.startswith(REGISTER) for name in nodes):  # it had begun, and would have failed the run
        return True
    raise InputError(
        f"run {run.run_id} succeeded, but the server lost sight of its steps: see in MLflow whether it registered"
    )


def _get(server: Server, run_id: str) -> tuple[V2beta1Run, list[Task]]:
    for _ in range(3):  # a server that was just restored may not have it for a moment
        with contextlib.suppress(NotFound):
            return run_tasks.fetch(server, run_id)
        time.sleep(POLL_INTERVAL)
    raise InputError(
        f"run {run_id} is no longer on {server.address}: somebody deleted it; finished work is in the store"
    )


def _steps(tasks: list[Task], pipeline: Compiled) -> dict[str, Task]:
    """The steps by the names that people know.

    Not every task is a step: there are groups, and Argo's own nodes. Of a step that was retried the last try counts.
    """
    titles = {title: title for title in pipeline.steps.values()} | pipeline.steps
    return {titles[task.name]: task for task in tasks if task.name in titles}


def _took(task: Task) -> str:
    if task.state not in runs.FINAL_STATES or not task.started or not task.ended or task.ended < task.started:
        return ""
    return f" in {duration((task.ended - task.started).total_seconds())}"
