"""Following a run to its end, whatever servers and proxies do meanwhile."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest

from qlora_pipelines.pipelines.kfp_api import client
from tests.pipelines.kfp_api.commands import refused, submit
from tests.pipelines.kfp_api.state import Fault, Kfp, look, task

pytestmark = pytest.mark.parametrize("kfp", [True, False], ids=["2.17", "without ML Metadata"], indirect=True)


def steps(*states: str) -> list[api.V2beta1PipelineTaskDetail]:
    """Steps in the pipeline's order, among nodes that are not steps."""
    names = ["plan-run", "stage-base-model", "prepare-dataset", "train-qlora", "evaluate-model", "dequantize-and-merge",
             "evaluate-model-2", "register-model"]  # fmt: skip
    shown = [task(name, state) for name, state in zip(names, states, strict=False)]
    root = "RUNNING" if set(states) - {"SUCCEEDED"} else "SUCCEEDED"
    return [task("root", root), task("root-driver", "SUCCEEDED"), task("executor", root), *shown]


DONE = ["SUCCEEDED"] * 8


def test_wait_says_each_step_once_and_ends_as_the_run(kfp: Kfp, run_yaml: Path) -> None:
    began, ended = datetime(2026, 1, 1, 12, 0, tzinfo=UTC), datetime(2026, 1, 1, 12, 1, 5, tzinfo=UTC)
    timed = task("plan-run", "SUCCEEDED", start_time=began, end_time=ended)
    kfp.life = [
        look("PENDING"), look("RUNNING", *steps("RUNNING")), look("RUNNING", *steps("RUNNING")),
        look("RUNNING", timed, task("train-qlora", "RUNNING")), look("SUCCEEDED", *steps(*DONE)),
    ]  # fmt: skip
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (0, "done")
    said = found["said"].splitlines()
    assert sum(line.split() == ["plan", "running"] for line in said) == 1
    assert any(line.split()[:1] == ["plan"] and line.endswith("succeeded in 1 min 05 s") for line in said)
    assert not any(word in found["said"] for word in ("driver", "executor", "root"))
    assert any(line.startswith("evaluate-merged") for line in said)  # by the name that people know


def test_a_run_that_the_gate_stopped_exits_3(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("SUCCEEDED", *steps(*DONE[:5]))]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (3, "gate_said_no")
    assert "rejected by the gate" in found["said"]


def test_a_run_whose_steps_the_server_lost_sight_of(kfp: Kfp, run_yaml: Path) -> None:
    """As Kubeflow 2.17 leaves a workflow that Argo compressed: the run has succeeded, and its tasks still run."""
    kfp.metadata = True  # without it, the steps' own reports are listed
    begun = [*steps(*DONE[:7], "RUNNING"), task("register-model-driver", "RUNNING")]
    kfp.life = [look("SUCCEEDED", *begun)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (0, "done")
    kfp.life = [look("SUCCEEDED", *steps(*DONE[:3], "RUNNING"))]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (1, "unknown")
    assert "lost sight of its steps: see in MLflow whether it registered" in found["said"]


def test_a_run_that_failed_exits_1_with_the_step_and_its_line(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs["pod-1"] = "loading\n[train_qlora] error: the loss is NaN at step 3\nexit status 1\n"
    failed = task("train-qlora", "FAILED", child_tasks=[api.PipelineTaskDetailChildTask(pod_name="pod-1")])
    kfp.life = [look("FAILED", task("plan-run", "SUCCEEDED"), failed)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["failed_step"]) == (1, "train")
    assert found["last_lines"] == ["[train_qlora] error: the loss is NaN at step 3"]


def test_a_step_that_failed_counts_although_the_run_is_called_succeeded(kfp: Kfp, run_yaml: Path) -> None:
    """As in kubeflow/pipelines #11405: the exit task succeeded."""
    kfp.logs["pod-1"] = "[train_qlora] error: the loss is NaN at step 3\n"
    group, told = task("fine-tuning", "FAILED"), task("notify", "SUCCEEDED")
    failed = task("train", "FAILED", pod_name="pod-1")
    kfp.life = [look("SUCCEEDED", task("plan-run", "SUCCEEDED"), failed, group, told)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["failed_step"]) == (1, "train")
    assert found["last_lines"] == ["[train_qlora] error: the loss is NaN at step 3"]


def test_a_notification_that_failed_is_not_the_step_that_failed(kfp: Kfp, run_yaml: Path) -> None:
    told, failed = task("notify", "FAILED", pod_name="gone"), task("train-qlora", "FAILED", pod_name="gone")
    kfp.life = [look("FAILED", told, failed)]
    assert submit(run_yaml, "--wait")["failed_step"] == "train"
    kfp.life = [look("SUCCEEDED", *steps(*DONE), told)]
    assert submit(run_yaml, "--wait")["exit_code"] == 0
    kfp.life = [look("FAILED", *steps(*DONE), told)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["failed_step"]) == (1, "notify")


def test_the_group_of_the_steps_is_no_step(kfp: Kfp, run_yaml: Path) -> None:
    group, driver, told = (task(name, "SUCCEEDED") for name in ("fine-tuning", "exit-handler-1-driver", "notify"))
    kfp.life = [look("SUCCEEDED", *steps(*DONE[:5]), group, driver, told)]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (3, "gate_said_no")
    assert "fine-tuning" not in found["said"] and "exit-handler" not in found["said"]


def test_without_a_log_the_servers_reason_is_printed(kfp: Kfp, run_yaml: Path) -> None:
    failed = task("train-qlora", "FAILED", pod_name="gone", error=api.GoogleRpcStatus(message="pod deleted"))
    kfp.life = [look("FAILED", failed)]
    assert submit(run_yaml, "--wait")["last_lines"] == ["pod deleted"]
    kfp.life = [look("FAILED")]
    found = submit(run_yaml, "--wait")
    assert found["exit_code"] == 1 and found["last_lines"] == [
        "the server gives no reason; the step's log is in the UI"
    ]


def test_a_log_without_an_error_line_is_shown_by_its_end(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs["pod-1"] = "\n".join(f"line {n}" for n in range(40))
    kfp.life = [look("FAILED", task("train-qlora", "FAILED", pod_name="pod-1"))]
    assert submit(run_yaml, "--wait")["last_lines"] == [f"line {n}" for n in range(25, 40)]


HISTORY = [api.V2beta1RuntimeStatus(state="CANCELING"), api.V2beta1RuntimeStatus(state="FAILED")]


@pytest.mark.parametrize(
    "life",
    [
        [look("RUNNING"), look("CANCELING"), look("CANCELED")],
        [look("RUNNING"), look("CANCELING"), look("FAILED")],  # Argo's state of a terminated run
        [look("FAILED", state_history=HISTORY)],
    ],
    ids=["cancelled", "called failed", "called failed, with a history"],
)
def test_a_cancelled_run_exits_4(kfp: Kfp, run_yaml: Path, life: list[dict[str, Any]]) -> None:
    kfp.life = list(life)
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (4, "cancelled")


def test_a_run_that_was_deleted_is_an_error(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("RUNNING"), {"vanish": True}]
    assert "is no longer on" in refused("submit", "--config", run_yaml, "--wait")


def test_a_run_that_could_not_be_followed_is_still_named(kfp: Kfp, run_yaml: Path) -> None:
    kfp.life = [look("RUNNING"), {"vanish": True}]
    found = submit(run_yaml, "--wait")
    assert (found["exit_code"], found["outcome"]) == (1, "unknown")
    assert found["run_id"] and "is no longer on" in found["said"]


@pytest.mark.parametrize(
    "fault",
    [
        Fault("GET .*/runs/", 401, times=3), Fault("GET .*/runs/", 503, times=5), Fault("GET .*/runs/", 0, times=4),
        Fault("GET .*/runs/", 502, times=2, page="<html>Bad Gateway</html>"), Fault("GET .*/runs/", slow=0.6, times=2),
        Fault("GET .*/runs/", 404, times=2), Fault("GET .*/runs/", 429, times=2),
    ],
    ids=["401", "503", "dropped", "a proxy's page", "slow", "404 for a moment", "429"],
)  # fmt: skip
def test_the_wait_survives(kfp: Kfp, run_yaml: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "TIMEOUT", (0.5, 0.4))
    kfp.life = [look("RUNNING", *steps("RUNNING")), look("SUCCEEDED", *steps(*DONE))]
    kfp.faults = [fault]
    assert submit(run_yaml, "--wait")["exit_code"] == 0
    assert fault.times == 0


def test_a_renewed_token_is_read_in_the_middle_of_a_wait(
    kfp: Kfp, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("a-secret-token\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    kfp.token = "a-secret-token"
    kfp.life = [look("RUNNING", *steps("RUNNING"))] * 3 + [look("SUCCEEDED", *steps(*DONE))]
    refresh = client.time.sleep

    def sleep(seconds: float) -> None:
        if kfp.count("GET .*/runs/") == 2:
            kfp.token = "another"  # the old one is refused from now on
        if kfp.count("GET .*/runs/") == 4:
            token.write_text("another")
        refresh(seconds)

    monkeypatch.setattr(client.time, "sleep", sleep)
    assert submit(run_yaml, "--wait")["exit_code"] == 0
    assert kfp.count("GET .*/runs/") > 4


def test_a_server_that_stays_away_ends_the_wait(kfp: Kfp, run_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_pipelines.pipelines.kfp_api import watch

    monkeypatch.setattr(watch, "RETRY_TIMEOUT", 0.1)
    monkeypatch.setattr(client.Server.__init__, "__defaults__", ("", "", "", 0.1))
    kfp.faults = [Fault("GET .*/runs/", 503, times=10**6)]
    assert "it is not my day (HTTP status 503)" in refused("submit", "--config", run_yaml, "--wait")
    assert len(kfp.runs) == 1 and not kfp.terminated
