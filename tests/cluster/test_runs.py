"""Runs on a cluster, with a tiny model: what Kubeflow says of each task, and which pods there were."""

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

from qlora_pipelines.pipelines.kfp_api import run_tasks
from qlora_pipelines.pipelines.kfp_api.client import full_run
from qlora_pipelines.pipelines.placement import STEP_LABEL
from tests.cluster.conftest import Installed
from tests.conftest import conversation, write_jsonl

STEPS = {
    "plan", "stage-base", "prepare-data", "train", "evaluate-tuned", "merge", "evaluate-merged", "register",
    "notify",
}  # fmt: skip
WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]


def config(installed: Installed, folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A run of the tiny model, on a node without a GPU, that takes a minute besides its pods' starts."""
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    (folder / name).mkdir()
    write_jsonl(folder / name / "rows.jsonl", rows)
    return {
        "base_model": f"{installed.data}/tiny",
        "dataset_uri": installed.upload(folder / name, name),
        "model_name": name,
        "max_length": 64,
        "learning_rate": 0.01,
        "gpu_count": "0",
        "cpu": "500m",
        "memory": "3Gi",
        "options": {
            "prepare_dataset": {"eval_share": 0.2},
            "train_qlora": {"max_steps": 20, "batch_tokens": 512},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4},
        },
    } | changes


def task_states(installed: Installed, run_id: str) -> dict[str, str]:
    """What Kubeflow's API says of every task of a run, also of those that only Kubeflow knows.

    A server without ML Metadata lists no task that never started.
    """
    run, listed = full_run(installed.kubeflow(), run_id)
    return {task.name: task.state for task in run_tasks.of(run, listed) if task.name} | {"run": run.state}


def step_pods(installed: Installed, run_id: str) -> set[str]:
    """The steps of a run that got a pod of their own: Kubeflow found the others' results in its cache."""
    pods = installed.cluster.get("pod", selector=f"pipeline/runid={run_id},{STEP_LABEL}")
    return {pod["metadata"]["labels"][STEP_LABEL] for pod in pods}


@pytest.fixture(scope="module")
def first(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """A run that registers a model: its configuration and its end."""
    folder = tmp_path_factory.mktemp("first")
    # No other test prepares rows of this length: Kubeflow's cache has nothing for this run.
    values = config(installed, folder, "tiny-first", max_length=72)
    # Characters that mean something to JSON, YAML, a shell, Kubeflow or Argo go through all of them as they are.
    hard = 'It\'s "quoted"\nand on a new line: {{$.x}} {{workflow.name}} $(HOME) $HOME `a` \\ é'
    values["options"]["evaluate_model"]["baseline_messages"] = [{"role": "system", "content": hard}]
    return values, installed.submit(values, folder)


def test_every_step_succeeds_and_the_model_is_registered(
    first: tuple[dict[str, Any], dict[str, Any]], installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, ended = first
    assert ended["code"] == 0 and ended["outcome"] == "done", ended["log"]
    states = task_states(installed, ended["run_id"])
    assert set(states.values()) == {"SUCCEEDED"}, states
    assert ended["steps"] == dict.fromkeys(STEPS, "SUCCEEDED")
    [workflow] = installed.cluster.get("workflow", selector=f"pipeline/runid={ended['run_id']}")
    size = len(json.dumps(workflow, separators=(",", ":")))
    print(f"the Workflow object has {size / 2**20:.3f} MiB")
    assert "compressedNodes" not in workflow["status"] and size < 2**20
    for name in ("USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", installed.environment[f"MLFLOW_TRACKING_{name}"])
    client = mlflow.MlflowClient(installed.environment["MLFLOW_TRACKING_URI"])
    made_by = json.loads(client.get_model_version_by_alias("tiny-first", "champion").tags["qlora.run_config"])
    # plan_run writes down what it decided where the run left it open.
    training = {**values["options"]["train_qlora"], "packing": True}
    assert made_by["options"] == values["options"] | {"train_qlora": training}
    pulled = installed.qlora("pull", "models:/tiny-first@champion", "--to", str(tmp_path / "model"))
    assert pulled.returncode == 0 and (tmp_path / "model" / "model" / "config.json").exists()


def test_the_same_run_again_starts_only_pods_of_steps_that_are_not_cached(
    first: tuple[dict[str, Any], dict[str, Any]], installed: Installed, tmp_path: Path
) -> None:
    values, _ = first
    ended = installed.submit(values, tmp_path)
    assert ended["code"] == 0, ended["log"]
    assert set(ended["steps"]) == STEPS and set(ended["steps"].values()) <= {"SUCCEEDED", "CACHED"}
    assert step_pods(installed, ended["run_id"]) == {
        "plan-run",
        "stage-base-model",
        "dequantize-and-merge",
        "register-model",
        "notify",
    }


def test_a_gate_that_says_no_ends_the_run_green_and_unregistered(installed: Installed, tmp_path: Path) -> None:
    values = config(installed, tmp_path, "tiny-rejected", learning_rate=1e-9)
    ended = installed.submit(values, tmp_path)
    assert ended["code"] == 3 and ended["outcome"] == "gate_said_no", ended["log"]
    states = task_states(installed, ended["run_id"])
    assert states["run"] == states["evaluate-model"] == "SUCCEEDED"
    assert states.get("register-model") != "SUCCEEDED"
    refused = installed.qlora("pull", "models:/tiny-rejected@champion", "--to", str(tmp_path / "model"))
    assert refused.returncode == 1 and "there is no such version" in refused.stderr


def test_a_plan_that_fails_says_why_here_and_in_argos_node(installed: Installed, tmp_path: Path) -> None:
    values = config(installed, tmp_path, "tiny-failed", base_model=f"{installed.data}/nothing-here")
    ended = installed.submit(values, tmp_path)
    assert ended["code"] == 1 and ended["failed_step"] == "plan", ended["log"]
    assert any("nothing-here" in line for line in ended["last_lines"])
    message = next(
        node["message"]
        for workflow in installed.cluster.get("workflow", selector=f"pipeline/runid={ended['run_id']}")
        for node in workflow["status"]["nodes"].values()
        if node["type"] == "Pod" and node["phase"] == "Failed"
    )
    assert "nothing-here" in message
