"""The Argo WorkflowTemplate, run as Argo would: its wiring and gate work, with `qlora step` at every node.

Argo itself is not here. What is its part is done by `carry_out`: the order of tasks, files carried from one to the
next, and conditions; and by `argo_rendering`: values put into arguments.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.pipelines.compiler import argo
from tests import argo_rendering
from tests.components.notify.hook import Hook, serving
from tests.conftest import conversation, write_jsonl
from tests.integration.registered import QLORA

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\{\{([^}]+)\}\}", lambda found: values[found[1]], text)


def carry_out(workflow: dict[str, Any], given: dict[str, str], folder: Path) -> dict[str, str]:
    """Runs a workflow's tasks, each in a folder of its own; returns every value by its name in Argo."""
    values = _known(workflow, given, folder)
    [pipeline] = [template for template in workflow["spec"]["templates"] if template["name"] == "pipeline"]
    waiting, done, left_out = list(pipeline["dag"]["tasks"]), set(), set()
    while waiting:
        task = next(task for task in waiting if _depends(task) <= done | left_out)
        waiting.remove(task)
        if _depends(task) & left_out or not _wanted(filled(task.get("when", ""), values)):
            left_out.add(task["name"])
            continue
        rendered = argo_rendering.in_its_task(workflow, task["name"], given, values)
        _run(task, rendered, values, folder)
        done.add(task["name"])
    _end(workflow, given, folder)
    return values


def _end(workflow: dict[str, Any], given: dict[str, str], folder: Path) -> None:
    """Runs the exit template, which has no inputs: its arguments name values of the workflow."""
    failures = json.dumps(json.dumps(None))  # as Argo writes that there are none
    ended = {"workflow.status": "Succeeded", "workflow.name": "wf", "workflow.failures": failures}
    name = workflow["spec"]["onExit"]
    rendered = argo_rendering.alone(workflow, name, {}, _known(workflow, given, folder) | ended)
    _run({"name": name, "arguments": {"parameters": []}}, rendered, {}, folder)


def _known(workflow: dict[str, Any], given: dict[str, str], folder: Path) -> dict[str, str]:
    return argo_rendering.of_workflow(workflow, given) | {"workflow.uid": folder.name}


def _depends(task: dict[str, Any]) -> set[str]:
    return set(re.findall(r"([\w-]+)\.Succeeded", task.get("depends", "")))


def _wanted(condition: str) -> bool:
    return all(left == right for left, right in (part.split(" == ") for part in condition.split(" && ") if part))


def _run(task: dict[str, Any], template: dict[str, Any], values: dict[str, str], folder: Path) -> None:
    place = folder / task["name"]
    place.mkdir(parents=True)
    for each in task["arguments"].get("artifacts", []):
        source = Path(values[each["from"].strip("{}")])
        target = place / "in" / each["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
    folders = {argo.FILES: str(place), argo.INPUTS: str(place / "in")}
    command = [re.sub("|".join(folders), lambda found: folders[found[0]], arg) for arg in template["container"]["args"]]
    env = os.environ | {each["name"]: each["value"] for each in template["container"]["env"] if "value" in each}
    done = subprocess.run([QLORA, *command], capture_output=True, text=True, check=False, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"tasks.{task['name']}.outputs"
    for each in template["outputs"]["parameters"]:
        values[f"{name}.parameters.{each['name']}"] = (place / "results" / each["name"]).read_text()
    for each in template["outputs"].get("artifacts", []):
        assert (place / each["name"]).exists(), each
        values[f"{name}.artifacts.{each['name']}"] = str(place / each["name"])


def test_a_model_is_registered_by_the_workflow_and_the_gate_holds(
    mlflow_server: str, own_store: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([QLORA, "compile", "--format", "argo", str(tmp_path / "argo.yaml")], check=True)
    workflow = yaml.safe_load((tmp_path / "argo.yaml").read_text())
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    options = {
        "prepare_dataset": {"eval_share": 0.2},
        "train_qlora": {"max_steps": 20, "batch_tokens": 512},
        "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4},
    }
    given = {
        "base_model": str(tiny_model),
        "dataset_uri": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "model_name": "by-argo",
        "max_length": "64",
        "learning_rate": "0.01",
        "options": json.dumps(options),
    }
    with serving(Hook()) as hook:
        monkeypatch.setenv("QLORA_WEBHOOK_URL", hook.url)
        values = carry_out(workflow, given, tmp_path / "first")
    [message] = hook.messages
    assert (message["outcome"], message["model"], message["run_id"]) == ("registered", "by-argo", "first")
    assert message["links"]["model"] == f"{mlflow_server}/#/models/by-argo/versions/{message['version']}"
    assert values["tasks.register-model.outputs.parameters.outcome"] == "champion"
    version = mlflow_client.connect().get_model_version_by_alias("by-argo", "champion")
    assert version.tags["qlora.pipeline_run_id"] == "first"
    assert json.loads(version.tags["qlora.run_config"])["model_name"] == "by-argo"
    options["evaluate_model"]["min_improvement"] = 100
    with serving(Hook()) as hook:
        monkeypatch.setenv("QLORA_WEBHOOK_URL", hook.url)
        values = carry_out(workflow, given | {"options": json.dumps(options)}, tmp_path / "second")
    assert hook.messages[0]["outcome"] == "rejected", hook.messages
    assert values["tasks.evaluate-model.outputs.parameters.passed"] == "false"
    assert "tasks.dequantize-and-merge.outputs.parameters.merged_uri" not in values
