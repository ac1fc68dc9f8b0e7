"""Follows a run. kfp's own wait does not raise where a run failed, and never ends where one was cancelled."""

import datetime
import enum
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from kfp_server_api import V2beta1PipelineTaskDetail, V2beta1Run

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import runs
from qlora_pipelines.pipelines.kfp_api.client import NotThere, Server

EVERY = 5.0
"""Seconds between two looks."""
PATIENCE = 900.0
"""Seconds without an answer after which a run is not followed any longer. It goes on."""
LAST_LINES = 15
ENDED = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
REGISTERED = "register-model"


class End(enum.IntEnum):
    """How a run ended; the numbers are the command's exit codes."""

    DONE = 0
    FAILED = 1
    GATE_SAID_NO = 3
    CANCELLED = 4


class Followed(NamedTuple):
    """How a run ended. `step` is the one that failed and `lines` what it said last; `steps` each step's last state."""

    end: End
    step: str
    lines: list[str]
    steps: dict[str, str]


def follow(server: Server, run_id: str, pipeline: Compiled, say: Callable[[str], None]) -> Followed:
    """Looks until the run is at its end, and says each step's state as it changes.

    Args:
        server: where it runs.
        run_id: the run.
        pipeline: what it runs, for the names of its steps.
        say: takes a line.

    Raises:
        InputError: the run is no longer there, or the server has not answered for too long.
    """
    server.patience = max(server.patience, PATIENCE)
    known: dict[str, str] = {}
    states: list[str] = []
    gone = 0
    while True:
        try:
            run = server.ask(server.runs.run_service_get_run, run_id)
            gone = 0
        except NotThere:
            gone += 1
            if gone == 3:  # a server that was just restored may not have it for a moment
                raise InputError(
                    f"run {run_id} is no longer on {server.address}: somebody deleted it; finished work is in the store"
                ) from None
            time.sleep(EVERY)
            continue
        steps = _steps(run, pipeline)
        for name, task in steps.items():
            if task.state and known.get(name) != task.state:
                known[name] = task.state
                say(f"{name:<20}  {task.state.lower()}{_took(task)}")
        if run.state and run.state not in states[-1:]:
            states.append(run.state)
            say(f"{'run':<20}  {run.state.lower()}")
        if run.state in ENDED:
            if "CANCELING" in states or runs.state_of(run) == "CANCELED":
                return Followed(End.CANCELLED, "", [], known)
            if run.state == "FAILED":
                return _failed(server, run, steps, known)
            # A run that fails the gate ends without an error, and without the step that registers.
            registers = pipeline.steps.get(REGISTERED)
            said_no = steps and registers and known.get(registers) != "SUCCEEDED"
            return Followed(End.GATE_SAID_NO if said_no else End.DONE, "", [], known)
        time.sleep(EVERY)


def _steps(run: V2beta1Run, pipeline: Compiled) -> dict[str, V2beta1PipelineTaskDetail]:
    """The steps by the names that people know.

    The server lists Argo's nodes too: drivers, executors, conditions. Of a step that was tried again the last is shown.
    """
    details = (run.run_details.task_details if run.run_details else None) or []
    names = pipeline.steps
    shown = {value: value for value in names.values()} | names
    first = datetime.datetime.min.replace(tzinfo=datetime.UTC)
    found = [task for task in details if task.display_name in shown]
    return {shown[task.display_name]: task for task in sorted(found, key=lambda task: task.create_time or first)}


def _took(task: V2beta1PipelineTaskDetail) -> str:
    if task.state not in ENDED or not task.start_time or not task.end_time or task.end_time < task.start_time:
        return ""
    return f" in {duration((task.end_time - task.start_time).total_seconds())}"


def _failed(
    server: Server, run: V2beta1Run, steps: dict[str, V2beta1PipelineTaskDetail], states: dict[str, str]
) -> Followed:
    failed = next((name for name, task in steps.items() if task.state == "FAILED"), "")
    lines = _last_lines(server, run, steps[failed]) if failed else _reason(run)
    return Followed(End.FAILED, failed, lines, states)


def _last_lines(server: Server, run: V2beta1Run, task: V2beta1PipelineTaskDetail) -> list[str]:
    """What a step said last: its log where the server gives it, else what the server knows of its end."""
    pods = [task.pod_name, *(child.pod_name for child in task.child_tasks or [])]
    for pod in reversed([pod for pod in pods if pod]):
        if lines := [line.rstrip() for line in server.log(run.run_id, pod).splitlines() if line.strip()]:
            said = [line for line in lines if "] error: " in line]
            return [*said[-1:], *([] if said else lines[-LAST_LINES:])]
    return _reason(task)


def _reason(item: Any) -> list[str]:
    """The message of a run's or a step's error."""
    if item.error and item.error.message:
        return str(item.error.message).strip().splitlines()[:LAST_LINES]
    for status in reversed(item.state_history or []):
        if status.error and status.error.message:
            return str(status.error.message).strip().splitlines()[:LAST_LINES]
    return ["the server gives no reason; the step's log is in the UI"]
