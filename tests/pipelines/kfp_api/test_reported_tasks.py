"""What only a server without ML Metadata does: steps report for themselves, and nobody reports for a killed one."""

from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest

from tests.pipelines.kfp_api.commands import submit
from tests.pipelines.kfp_api.full_view import reported
from tests.pipelines.kfp_api.state import Kfp
from tests.pipelines.kfp_api.test_failures import END, KILLED, PLAN, START, TRAINING

pytestmark = pytest.mark.parametrize("kfp", [False], ids=["without ML Metadata"], indirect=True)
PLANNED = reported("plan-run", "SUCCEEDED", "plan")


def look(state: str, *tasks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A run's state at one request; its groups are in the state of the run."""
    groups = [("trial", "ROOT"), ("exit-handler-1", "DAG")]
    kept = "RUNNING" if state in ("FAILED", "CANCELED") else state
    return {"state": state, "tasks": [*(reported(name, kept, kind=kind) for name, kind in groups), *tasks], **more}


def node(name: str, pod: str, phase: str, message: str = "", started: str = "2026-01-01T12:00:00Z") -> dict[str, Any]:
    """A pod as Argo has it in a Workflow."""
    return {"id": pod, "name": name, "displayName": name.rpartition(".")[2], "type": "Pod", "phase": phase,
            "message": message, "startedAt": started}  # fmt: skip


def executor(task: str, pod: str, *more: str) -> dict[str, Any]:
    return node(f"wf(0).root(0).exit-handler-1(0).{task}(0).executor(0)", pod, "Failed", *more)


def test_a_step_from_the_cache_and_how_long_the_others_took(kfp: Kfp, run_yaml: Path) -> None:
    times = {"create_time": "2026-01-01T12:00:00Z", "end_time": "2026-01-01T12:01:05.250Z"}
    cached, registered = reported("prepare-dataset", "CACHED"), reported("register-model", "SUCCEEDED", "p", **times)
    kfp.life = [look("SUCCEEDED", PLANNED, cached, registered)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (0, "done")
    assert found["steps"] == {"plan": "SUCCEEDED", "prepare-data": "CACHED", "register": "SUCCEEDED"}
    said = [line.split() for line in found["said"].splitlines()]
    assert ["prepare-data", "cached"] in said and ["register", "succeeded", "in", "1", "min", "05", "s"] in said


def test_the_gate_said_no_and_the_steps_after_it_are_not_there(kfp: Kfp, run_yaml: Path) -> None:
    branch = reported("condition-2", "SKIPPED", kind="CONDITION_BRANCH")
    kfp.life = [look("SUCCEEDED", PLANNED, reported("evaluate-model", "SUCCEEDED", "p"), branch)]
    assert submit(run_yaml, "--wait")["outcome"] == "gate_said_no"


def test_a_try_that_failed_is_not_the_end(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [
        look("RUNNING", PLANNED, reported("register-model", "FAILED", "try-1", error="exit status 1")),
        look("SUCCEEDED", PLANNED, reported("register-model", "SUCCEEDED", "try-1", "try-2", error="exit status 1")),
    ]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (0, "done")
    assert "failed; it may be tried again" in found["said"]


def test_the_last_trys_log_says_why(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs = {"try-1": "[train_qlora] error: the store is away\n", "try-2": "[train_qlora] error: it is NaN\n"}
    kfp.life = [look("FAILED", PLANNED, reported("train-qlora", "FAILED", "try-1", "try-2", error="exit status 1"))]
    assert submit(run_yaml, "--wait")["last_lines"] == ["[train_qlora] error: it is NaN"]


def test_an_output_that_the_launcher_misses(kfp: Kfp, run_yaml: Path) -> None:
    """The step's own log ends as if nothing had happened."""
    error = 'declared output artifact "report" is missing at "/gcs/report"'
    kfp.logs = {"pod": START + TRAINING}
    kfp.life = [look("FAILED", PLANNED, reported("train-qlora", "FAILED", "pod", error=error))]
    first, *others = submit(run_yaml, "--wait")["last_lines"]
    assert first == f"{error}. Its log ends so:" and others[-1] == TRAINING.strip()


def test_a_step_that_was_killed_by_the_log_that_argo_knows_of(kfp: Kfp, run_yaml: Path) -> None:
    kfp.workflows = {
        "a": executor("train-qlora", "try-2", "main: OOMKilled (exit code 137)", "2026-01-01T12:09:00Z"),
        "b": executor("train-qlora", "try-1", "main: Error (exit code 255)"),
        "c": executor("train-qlora-2", "another", "no"),
        "d": node("wf(0).root(0).train-qlora-driver(0)", "driver", "Succeeded"),
    }
    kfp.logs = {
        "plan": PLAN,
        "try-1": "an earlier one",
        "try-2": START + TRAINING,
        "driver-of-train-qlora": "I am none",
    }
    kfp.life = [look("RUNNING", PLANNED, reported("train-qlora", "RUNNING"))]
    kfp.life += [look("FAILED", PLANNED, reported("train-qlora", "RUNNING"), reported("notify", "SUCCEEDED", "n"))]
    found = submit(run_yaml, "--wait", "--set", "memory=3Gi", "--set", "gpu_count=0")
    assert (found["exit_code"], found["failed_step"], found["steps"]["train"]) == (1, "train", "FAILED")
    assert found["last_lines"] == [
        f"{KILLED} 3Gi; the plan said 1.0 GiB on the CPU: raise memory. Its log ends so:",
        START.splitlines()[0], START.splitlines()[1], TRAINING.strip(),
    ]  # fmt: skip


def test_a_step_that_was_stopped_for_another_reason(kfp: Kfp, run_yaml: Path) -> None:
    late = "Pod was active on the node longer than the specified deadline"
    kfp.workflows = {"a": executor("train-qlora", "pod", late)}
    kfp.life = [look("FAILED", PLANNED, reported("train-qlora", "RUNNING"))]
    assert submit(run_yaml, "--wait")["last_lines"] == [late]
    kfp.logs = {"pod": START + TRAINING}
    assert submit(run_yaml, "--wait")["last_lines"][0] == f"{late}. Its log ends so:"


@pytest.mark.parametrize("workflows", [{}, {"a": {"type": "Pod"}}, {"a": {}}])
def test_a_step_that_was_stopped_and_nobody_knows_why(kfp: Kfp, run_yaml: Path, workflows: dict[str, Any]) -> None:
    kfp.workflows = workflows
    kfp.life = [look("FAILED", PLANNED, reported("train-qlora", "RUNNING"))]
    advice = "The server has no log of it; the pod's events may say more"
    assert submit(run_yaml, "--wait")["last_lines"] == [f"{KILLED} 32Gi: raise memory. {advice}"]


def test_the_step_that_says_that_it_failed_comes_first(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs = {"pod": "[prepare_dataset] error: no rows\n" + END.format("exit status 1")}
    stopped, failed = reported("stage-base-model", "RUNNING"), reported("prepare-dataset", "FAILED", "pod")
    kfp.life = [look("FAILED", PLANNED, stopped, failed, reported("notify", "RUNNING"))]
    found = submit(run_yaml, "--wait")
    assert (found["failed_step"], found["last_lines"]) == ("prepare-data", ["[prepare_dataset] error: no rows"])
    kfp.life = [look("FAILED", PLANNED, reported("notify", "RUNNING"))]
    assert submit(run_yaml, "--wait")["failed_step"] == "notify"


def test_a_killed_step_counts_although_the_run_is_called_succeeded(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("SUCCEEDED", PLANNED, reported("train-qlora", "RUNNING"), reported("notify", "SUCCEEDED", "n"))]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["failed_step"]) == (1, "train")


def test_a_run_that_failed_before_its_first_step(kfp: Kfp, run_yaml: Path) -> None:
    kfp.workflows = {"a": node("wf(0).root-driver(0)", "driver", "Error", "main: Error (exit code 1)")}
    kfp.life = [{"state": "FAILED"}]
    found = submit(run_yaml, "--wait")
    assert (found["failed_step"], found["last_lines"]) == ("", ["root-driver(0): main: Error (exit code 1)"])


def test_steps_of_a_cancelled_run(kfp: Kfp, run_yaml: Path) -> None:
    history = [api.V2beta1RuntimeStatus(state="CANCELING"), api.V2beta1RuntimeStatus(state="FAILED")]
    kfp.life = [look("FAILED", PLANNED, reported("train-qlora", "RUNNING"), state_history=history)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (4, "cancelled")
    assert found["steps"] == {"plan": "SUCCEEDED", "train": "CANCELED"}
