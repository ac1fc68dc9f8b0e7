"""What the compiled pipeline leaves out, and that nothing of what it does goes with it."""

import ast
from typing import Any

import pytest
import yaml

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.compiler import kubeflow
from qlora_pipelines.pipelines.docgen.reference import GOLDEN

PIPELINE, PLATFORM = yaml.safe_load_all(GOLDEN.read_text())
EXECUTORS = PIPELINE["deploymentSpec"]["executors"]


def function(source: str) -> ast.FunctionDef:
    """A component's function without its docstring."""
    [found] = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
    if ast.get_docstring(found):
        del found.body[0]
    return found


def plain(step: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A step's component and its container, as kfp alone compiles them."""
    component = next(yaml.safe_load_all(kubeflow.component_yaml(step)))
    label = step.replace("_", "-")
    return component["components"][f"comp-{label}"], component["deploymentSpec"]["executors"][f"exec-{label}"][
        "container"
    ]


@pytest.mark.parametrize("step", placement.STEPS)
def test_the_code_is_the_same(step: str) -> None:
    label = step.replace("_", "-")
    command = EXECUTORS[f"exec-{label}"]["container"]["command"]
    component, container = plain(step)
    assert ast.dump(function(command[-1])) == ast.dump(function(container["command"][-1]))
    assert [part.split() for part in command[:-1]] == [part.split() for part in container["command"][:-1]]
    # kfp.local finds the code by these.
    assert '"$program_path/ephemeral_component.py"' in command[2] and '"$@"' in command[2]
    assert "from kfp import dsl" in command[-1] and "from typing import *" in command[-1]
    mine = PIPELINE["components"][f"comp-{label}"]
    for kind in ("parameters", "artifacts"):
        for direction in ("inputDefinitions", "outputDefinitions"):
            assert set(mine.get(direction, {}).get(kind, {})) == set(component.get(direction, {}).get(kind, {}))


def test_an_input_that_not_every_task_gives_keeps_its_default() -> None:
    for name in ("comp-evaluate-model", "comp-evaluate-model-2"):
        inputs = PIPELINE["components"][name]["inputDefinitions"]
        # One judges the adapter, the other the merged model; Kubeflow's compiler keeps one signature for both.
        for parameter in ("adapter_digest", "merged_uri", "merged_digest", "model_name", "champion_version"):
            assert (
                inputs["parameters"][parameter]["isOptional"] and inputs["parameters"][parameter]["defaultValue"] == ""
            )
        assert "isOptional" not in inputs["parameters"]["options"]
        assert inputs["artifacts"]["adapter"]["isOptional"]


def test_the_pipelines_own_inputs_keep_theirs() -> None:
    parameters = PIPELINE["root"]["inputDefinitions"]["parameters"]
    assert parameters["lora_r"]["defaultValue"] == 16 and parameters["lora_r"]["description"]


def test_each_secret_is_named() -> None:
    for executor in PLATFORM["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        sources = [*executor["secretAsEnv"], *executor["secretAsVolume"], *executor["configMapAsEnv"]]
        assert all(source.get("secretName") or source.get("configMapName") for source in sources)
        assert not any("Parameter" in key for source in sources for key in source)
