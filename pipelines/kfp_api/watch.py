"""Follows a run. kfp's own wait does not raise where a run failed, and never ends where one was cancelled."""

import contextlib
import datetime
import time
from collections.abc import Callable
from typing import NamedTuple

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import failures, runs
from qlora_pipelines.pipelines.kfp_api.client import NotFound, Server
from qlora_pipelines.pipelines.tasks import NOTIFY, REGISTER, End

POLL_INTERVAL = 5.0
"""Seconds between two requests for the run's state."""
RETRY_TIMEOUT = 900.0
"""Seconds without an answer after which a run is no longer followed. It goes on."""
FINAL_STATES = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}


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
        run = _get(server, run_id)
        steps = _steps(run, pipeline)
        for name, task in steps.items():
            if task.state and states.get(name) != task.state:
                states[name] = task.state
                say(f"{name:<20}  {task.state.lower()}{_took(task)}")
        if run.state and run.state != run_states[-1]:
            run_states.append(run.state)
            say(f"{'run':<20}  {run.state.lower()}")
        if run.state in FINAL_STATES:
            break
        time.sleep(POLL_INTERVAL)
    if "CANCELING" in run_states or runs.state(run) == "CANCELED":
        return FinishedRun(End.CANCELLED, "", [], states)
    # A run in which an exit task succeeded has been called SUCCEEDED although a step in it failed (kubeflow/pipelines
    # #11405). Whether people were told of the run is no part of how it ended.
    told = pipeline.steps.get(NOTIFY, "")
    failed = next((name for name, task in steps.items() if task.state == "FAILED" and name != told), "")
    if run.state == "FAILED" or failed:
        failed = failed or next((name for name, task in steps.items() if task.state == "FAILED"), "")
        return FinishedRun(End.FAILED, failed, failures.why(server, run, pipeline, steps, failed), states)
    rejected = steps and REGISTER in pipeline.steps and not _registered(run, states, pipeline.steps[REGISTER])
    return FinishedRun(End.GATE_SAID_NO if rejected else End.DONE, "", [], states)


def _registered(run: V2beta1Run, states: dict[str, str], registration: str) -> bool:
    """Whether a run that succeeded registered a model; one that the gate rejects ends without an error.

    Raises:
        InputError: the server does not say. Of a workflow of more than 1 MiB it no longer sees how the steps go on.
    """
    if states.get(registration) == "SUCCEEDED":
        return True
    tasks = {task.display_name or "": task.state for task in run.run_details.task_details or []}
    if tasks.get("root", "") not in ("RUNNING", "PENDING"):
        return False
    if any(name.startswith(REGISTER) for name in tasks):  # it had begun, and would have failed the run
        return True
    raise InputError(
        f"run {run.run_id} succeeded, but the server lost sight of its steps: see in MLflow whether it registered"
    )


def _get(server: Server, run_id: str) -> V2beta1Run:
    for _ in range(3):  # a server that was just restored may not have it for a moment
        with contextlib.suppress(NotFound):
            return server.call(server.runs.run_service_get_run, run_id)
        time.sleep(POLL_INTERVAL)
    raise InputError(
        f"run {run_id} is no longer on {server.address}: somebody deleted it; finished work is in the store"
    )


def _steps(run: V2beta1Run, pipeline: Compiled) -> dict[str, V2beta1PipelineTaskDetail]:
    """The steps by the names that people know.

    The server also lists Argo's nodes: drivers, executors, conditions. Of a step that was retried the last try counts.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    titles = {title: title for title in pipeline.steps.values()} | pipeline.steps
    start = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    ordered = sorted(details, key=lambda task: task.create_time or start)
    return {titles[task.display_name]: task for task in ordered if task.display_name in titles}


def _took(task: V2beta1PipelineTaskDetail) -> str:
    if task.state not in FINAL_STATES or not task.start_time or not task.end_time or task.end_time < task.start_time:
        return ""
    return f" in {duration((task.end_time - task.start_time).total_seconds())}"
