"""The group that all steps are in, and the task after it, read from the compiled YAML."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from qlora_pipelines.components.core.store import outcomes
from tests.pipelines.test_placement import GPU_TASKS, KUBERNETES, PIPELINE, tasks


def test_every_step_knows_its_run_by_the_pods_label_and_not_by_an_input() -> None:
    label = {"name": outcomes.RUN_VARIABLE, "fieldPath": "metadata.labels['pipeline/runid']"}
    for name, task in tasks(PIPELINE):
        assert KUBERNETES[f"exec-{name}"]["fieldPathAsEnv"] == [label]
        if task["cachingOptions"].get("enableCache"):  # an input that differs from run to run would defeat the cache
            assert "pipeline_job" not in json.dumps(task)


def test_people_are_told_after_all_steps_whatever_happens() -> None:
    root = PIPELINE["root"]["dag"]["tasks"]
    assert set(root) == {"exit-handler-1", "notify"}, "a step outside the group could fail without a word"
    told = root["notify"]
    assert told["triggerPolicy"]["strategy"] == "ALL_UPSTREAM_TASKS_COMPLETED"
    assert told["inputs"]["parameters"]["state"] == {"taskFinalStatus": {"producerTask": "exit-handler-1"}}
    assert "taskOutput" not in json.dumps(told), "an exit task takes nothing from inside"
    assert root["exit-handler-1"]["taskInfo"]["name"] == "fine-tuning"


LEVELS = {"": {"notify"}, "exit-handler-1": {"plan-run", "train-qlora", "evaluate-model", "stage-base-model",
          "prepare-dataset"}, "exit-handler-1/condition-2": {"dequantize-and-merge", "evaluate-model-2"},
          "exit-handler-1/condition-2/condition-3": {"register-model"}}  # fmt: skip


def levels(pipeline: dict[str, Any], dag: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every DAG of a pipeline by the names of the tasks that it is in."""
    yield path, dag
    for name, task in dag["dag"]["tasks"].items():
        inner = pipeline["components"][task["componentRef"]["name"]]
        if "dag" in inner:
            yield from levels(pipeline, inner, f"{path}/{name}".lstrip("/"))


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_step_names_is_there_at_its_level(level: str) -> None:
    """Inputs of the step and of its pod: from an input that its own DAG declares, or from a task of its own DAG."""
    dag = dict(levels(PIPELINE, PIPELINE["root"]))[level]
    declared, inside = set(dag["inputDefinitions"]["parameters"]), dag["dag"]["tasks"]
    steps = {name for name, task in inside.items() if "executorLabel" in component(task)}
    assert steps == LEVELS[level]
    for name, task in inside.items():
        label = component(task).get("executorLabel")
        uses = json.dumps([task, KUBERNETES.get(label)])
        taken = set(re.findall(r'"componentInputParameter": "([^"]+)"', uses))
        assert taken <= declared, (name, taken - declared)
        assert set(re.findall(r'"producerTask": "([^"]+)"', uses)) <= set(inside), name
        given = task["inputs"]["parameters"]
        assert set(component(task)["inputDefinitions"].get("parameters", {})) - set(given) <= optional(task), name
        if label:
            resources = json.dumps(PIPELINE["deploymentSpec"]["executors"][label]["container"]["resources"])
            assert set(re.findall(r"parameters\['([^']+)'\]", resources)) <= set(given), name
    if GPU_TASKS & steps:
        used = json.dumps([KUBERNETES[f"exec-{name}"] for name in GPU_TASKS & steps])
        assert "node_selector" in used and "tolerations" in used


def component(task: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = PIPELINE["components"][task["componentRef"]["name"]]
    return found


def optional(task: dict[str, Any]) -> set[str]:
    inputs = component(task)["inputDefinitions"]["parameters"]
    return {name for name, definition in inputs.items() if definition.get("isOptional")}


def test_there_is_no_other_level() -> None:
    assert [path for path, _ in levels(PIPELINE, PIPELINE["root"])] == list(LEVELS)
