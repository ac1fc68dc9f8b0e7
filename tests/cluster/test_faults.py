"""Training that is disturbed: what goes on by itself, and what goes on when the run is submitted again."""

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import kfp_server_api
import mlflow
import pytest

from qlora_pipelines.components.core.registry import training_runs
from qlora_pipelines.pipelines.placement import STEP_LABEL
from tests.cluster.conftest import Installed
from tests.cluster.test_bad_input import TAKE_ALL_MEMORY
from tests.cluster.test_form import start, terminate, wait
from tests.cluster.test_runs import config, task_states

CHILD, STEP = "train_qlora.child", "executor_main"
"""In the command line of the process that trains, and of the step that watches over it."""
KILL = """
import os, signal
for process in filter(str.isdigit, os.listdir("/proc")):
    command = open(f"/proc/{process}/cmdline").read().split(chr(0))
    if "python3" in command[0] and "-c" not in command[1:2] and any("%s" in part for part in command):
        os.kill(int(process), signal.SIGKILL)
"""


def long(installed: Installed, folder: Path, name: str, seed: int) -> dict[str, Any]:
    """A run whose training takes a minute or more, with a checkpoint every 20 steps; another seed is another one."""
    values = config(installed, folder, name, num_train_epochs=100, memory="2Gi", seed=seed)
    values["options"]["train_qlora"] = {"max_steps": 300, "batch_tokens": 512, "save_steps": 20}
    return values


class Training:
    """The training of a run, seen through its newest pod."""

    def __init__(self, installed: Installed, run_id: str) -> None:
        self.cluster, self.run_id = installed.cluster, run_id

    @property
    def pod(self) -> str:
        selector = f"pipeline/runid={self.run_id},{STEP_LABEL}=train-qlora"
        pods = self.cluster.get("pod", selector=selector)
        newest = max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"], default=None)
        return newest["metadata"]["name"] if newest else ""

    @property
    def log(self) -> str:
        return self.cluster.kubectl("logs", self.pod, "-c", "main", check=False) if self.pod else ""

    def reach(self, step: int) -> None:
        """Waits until the training has passed a step."""
        deadline = time.monotonic() + 900
        while not any(int(done) >= step for done in re.findall(r"training: (\d+)/", self.log)):
            assert time.monotonic() < deadline, self.log
            time.sleep(2)

    def execute(self, script: str) -> None:
        """Runs a script in the container of the step."""
        self.cluster.kubectl("exec", self.pod, "-c", "main", "--", "python3", "-c", script, check=False)

    def until_log_has(self, pattern: str) -> None:
        deadline = time.monotonic() + 300
        while not re.search(pattern, self.log):
            assert time.monotonic() < deadline, self.log
            time.sleep(2)


def mlflow_status(installed: Installed, run_id: str) -> list[str]:
    """How MLflow says that the training of a pipeline's run ended, or that it goes on."""
    client = mlflow.MlflowClient(installed.environment["MLFLOW_TRACKING_URI"])
    return [found.info.status for found in training_runs.find(client, training_runs.RUN_TAG, run_id)]


def begin(installed: Installed, values: dict[str, Any]) -> tuple[str, Training]:
    run_id = start(installed, values | {"options": json.dumps(values["options"])})
    return run_id, Training(installed, run_id)


def test_training_goes_on_when_its_process_or_its_pod_is_gone(installed: Installed, tmp_path: Path) -> None:
    run_id, training = begin(installed, long(installed, tmp_path, "tiny-disturbed", 1))
    training.reach(25)
    training.execute(KILL % CHILD)
    training.until_log_has(r"was killed by signal 9 \(SIGKILL\)")
    training.reach(45)
    threading.Thread(target=training.execute, args=(TAKE_ALL_MEMORY.replace(STEP, CHILD),), daemon=True).start()
    training.reach(65)
    first = training.pod
    installed.cluster.kubectl("delete", "pod", first)
    states = wait(installed, run_id)
    assert states["run"] == "SUCCEEDED", states
    assert training.pod != first and re.search(r"for 300 steps, going on after step (6|8|[12]\d)\d?0", training.log)


def test_a_step_that_is_killed_or_terminated_goes_on_when_the_run_is_submitted_again(
    installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", installed.environment[f"MLFLOW_TRACKING_{name}"])
    values = long(installed, tmp_path, "tiny-again", 2)
    run_id, training = begin(installed, values)
    training.reach(25)
    training.execute(KILL % STEP)
    assert wait(installed, run_id)["run"] == "FAILED", "Kubeflow 2.17 retries no step whose process has failed"

    run_id, training = begin(installed, values)
    training.until_log_has(r"for 300 steps, going on after step \d+")
    training.reach(45)
    terminate(installed, run_id)
    deadline = time.monotonic() + 120
    selector = f"pipeline/runid={run_id}"
    while any(pod["status"]["phase"] == "Running" for pod in installed.cluster.get("pod", selector=selector)):
        assert time.monotonic() < deadline, "pods of a terminated run go on"
        time.sleep(1)
    run = kfp_server_api.RunServiceApi(installed.kubeflow()).run_service_get_run(run_id)
    assert "CANCELING" in [status.state for status in run.state_history]
    while mlflow_status(installed, run_id) != [training_runs.KILLED]:
        assert time.monotonic() < deadline + 120, f"MLflow says {mlflow_status(installed, run_id)}"
        time.sleep(2)

    run_id, training = begin(installed, values)
    training.until_log_has(r"for 300 steps, going on after step ([4-9]|\d\d)\d")
    assert wait(installed, run_id)["run"] == "SUCCEEDED"
    assert task_states(installed, run_id)["register-model"] == "SUCCEEDED"
    assert mlflow_status(installed, run_id) == [training_runs.FINISHED]
