"""A step that was killed, by what Kubeflow's launcher and Argo leave of it."""

from pathlib import Path
from typing import Any

import kfp_server_api as api
import pytest

from tests.pipelines.kfp_api.commands import submit
from tests.pipelines.kfp_api.state import Kfp, look, task

pytestmark = pytest.mark.parametrize("kfp", [True, False], ids=["2.17", "without ML Metadata"], indirect=True)
START = """\
I1126 08:36:04.984083      16 main.go:67] Setting log level to: '1'
[KFP Executor 2026-11-26 08:36:05,306 INFO]: Got executor_input:
"""
END = """\
E1126 08:36:09.124678      16 launcher_v2.go:449] Component failed to execute successfully: {0}
I1126 08:36:09.145263      16 launcher_v2.go:206] publish success.
F1126 08:36:09.147589      16 main.go:59] failed to execute component: {0}
time=2026-11-26T08:36:10.073Z level=INFO msg="sub-process exited" argo=true error="exit status 1"
Error: exit status 1
"""
TRAINING = "[train_qlora] training: 3/20, 40 s left\n"
PLAN = """\
[plan_run] memory: training on the CPU needs 1.0 GiB, and memory is 3Gi
[plan_run] memory: 1.0 GiB on the CPU
"""
KILLED = "killed, most likely for taking more memory than its limit of"


def failed(kfp: Kfp, run_yaml: Path, step: str, *arguments: str, **more: Any) -> list[str]:
    """The last lines of a run whose step failed in the pod `pod`, after a plan in the pod `plan`."""
    plan = task("plan-run", "SUCCEEDED", child_tasks=[api.PipelineTaskDetailChildTask(pod_name="plan")])
    kfp.life = [look("FAILED", plan, task(step, "FAILED", pod_name="pod", **more))]
    found = submit(run_yaml, "--wait", *arguments)
    assert found["exit_code"] == 1 and f"failed: {found['last_lines'][0]}" in found["said"]
    return list(found["last_lines"])


@pytest.mark.parametrize("said", ["signal: killed", "exit status 137"])
def test_training_that_was_killed(kfp: Kfp, run_yaml: Path, said: str) -> None:
    kfp.logs = {"plan": PLAN, "pod": START + TRAINING + END.format(said)}
    lines = failed(kfp, run_yaml, "train-qlora", "--set", "gpu_count=0", "--set", "memory=3Gi")
    assert lines == [f"{KILLED} 3Gi; the plan said 1.0 GiB on the CPU: raise memory"]


def test_without_the_plans_log_and_with_the_default_memory(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs = {"pod": START + TRAINING + END.format("exit status 137")}
    assert failed(kfp, run_yaml, "train-qlora") == [f"{KILLED} 32Gi: raise memory"]


def test_the_plan_says_nothing_of_an_evaluation(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs = {"plan": PLAN, "pod": START + END.format("exit status 137")}
    assert failed(kfp, run_yaml, "evaluate-model-2") == [f"{KILLED} 32Gi: raise memory"]


@pytest.mark.parametrize(("step", "limit"), [("prepare-dataset", "8Gi"), ("dequantize-and-merge", "4Gi")])
def test_a_step_whose_memory_is_the_pipelines(kfp: Kfp, run_yaml: Path, step: str, limit: str) -> None:
    kfp.logs = {"pod": START + END.format("exit status 137")}
    advice = "raise it in pipelines/placement.py, and compile the pipeline again"
    assert failed(kfp, run_yaml, step) == [f"{KILLED} {limit}: {advice}"]


@pytest.mark.parametrize("message", ["OOMKilled (exit code 137)", "main: Error (exit code 137)"])
def test_without_a_log_the_servers_reason_counts(kfp: Kfp, run_yaml: Path, message: str) -> None:
    kfp.logs = {"plan": "[plan_run] memory: 5.1 GiB on a GPU, 3.0 GiB without one\n"}
    lines = failed(kfp, run_yaml, "train-qlora", error=api.GoogleRpcStatus(message=message))
    assert lines == [f"{KILLED} 32Gi; the plan said 5.1 GiB on a GPU, 3.0 GiB without one: raise memory"]


def test_a_container_that_was_killed_with_its_launcher(kfp: Kfp, run_yaml: Path) -> None:
    kfp.logs = {"pod": START + TRAINING * 20}
    first, *others = failed(kfp, run_yaml, "train-qlora")
    assert first == f"{KILLED} 32Gi: raise memory. Its log ends so:"
    assert others == [TRAINING.strip()] * 15


@pytest.mark.parametrize("said", ["exit status 1", "signal: terminated"])
def test_another_end_is_not_called_that(kfp: Kfp, run_yaml: Path, said: str) -> None:
    kfp.logs = {"pod": START + "it was killed\n" + END.format(said)}
    executor = START.splitlines()[1]
    *_, ended = [line for line in END.format(said).splitlines() if "failed to execute component" in line]
    assert failed(kfp, run_yaml, "train-qlora") == [executor, "it was killed", ended]


TRACEBACK = """\
  File "/opt/venv/lib/python3.11/site-packages/kfp/dsl/executor.py", line 453, in execute
    result = self.func(**func_kwargs)
  File "/tmp/tmp.IAmq2Q9lsd/ephemeral_component.py", line 79, in plan_run
"""
HINT = "; the pipeline and its image are of two versions: compile it with the version that the image has"


def test_an_image_of_another_version_than_the_pipeline(kfp: Kfp, run_yaml: Path) -> None:
    error = "ModuleNotFoundError: No module named 'components'"
    kfp.logs = {"pod": START + TRACEBACK + f"    from components import steps\n{error}\n" + END.format("exit status 1")}
    assert failed(kfp, run_yaml, "plan-run") == [error + HINT]
    error = "[plan_run] error: TypeError: run() got an unexpected keyword argument 'claim'"
    kfp.logs = {"pod": START + TRACEBACK + f"    task.run(claim=claim)\n{error}\n" + END.format("exit status 1")}
    assert failed(kfp, run_yaml, "plan-run") == [error + HINT]
    inside = '  File "/opt/venv/qlora_pipelines/components/plan_run/task.py", line 9, in run\n'
    kfp.logs = {"pod": START + TRACEBACK + inside + f"{error}\n" + END.format("exit status 1")}
    assert failed(kfp, run_yaml, "plan-run") == [error]
