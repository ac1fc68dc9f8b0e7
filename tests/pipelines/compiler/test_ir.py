"""The compiled pipeline as a flat list of steps, from specs written by hand."""

from typing import Any

import pytest

from qlora_pipelines.pipelines.compiler import ir
from qlora_pipelines.pipelines.compiler.ir import Source


def step(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"componentRef": {"name": f"comp-{name}"}, "inputs": {"parameters": inputs}, "taskInfo": {"name": name}}


def component(name: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {
        "executorLabel": f"exec-{name}",
        "inputDefinitions": {"parameters": {each: {"parameterType": "STRING"} for each in inputs}},
        "outputDefinitions": {"parameters": {each: {"parameterType": "STRING"} for each in outputs}},
    }


def given(name: str) -> dict[str, Any]:
    return {"componentInputParameter": name}


def output(task: str, name: str) -> dict[str, Any]:
    return {"taskOutputParameter": {"producerTask": task, "outputParameterKey": name}}


@pytest.fixture
def pipeline() -> dict[str, Any]:
    """Evaluation, and registration under a condition."""
    register = {
        "loss": given("pipelinechannel--judge-loss"),
        "model_name": given("pipelinechannel--model"),
        "run_id": {"runtimeValue": {"constant": "{{$.pipeline_job_uuid}}"}},
        "pipelinechannel--model": given("pipelinechannel--model"),  # registered by placement, for the pod
    }
    condition = {
        "componentRef": {"name": "comp-condition-1"},
        "dependentTasks": ["judge"],
        "taskInfo": {"name": "condition-1"},
        "inputs": {
            "parameters": {
                "pipelinechannel--judge-passed": output("judge", "passed"),
                "pipelinechannel--judge-loss": output("judge", "loss"),
                "pipelinechannel--model": given("model"),
            }
        },
        "triggerPolicy": {"condition": "inputs.parameter_values['pipelinechannel--judge-passed'] == true"},
    }
    return {
        "root": {
            "dag": {"tasks": {"register-when-passed": condition, "judge": step("judge", {"model": given("model")})}},
            "inputDefinitions": {"parameters": {"model": {"parameterType": "STRING", "description": "The model."}}},
        },
        "components": {
            "comp-judge": component("judge", ["model"], ["passed", "loss"]),
            "comp-condition-1": {"dag": {"tasks": {"register-model": step("register", register)}}},
            "comp-register": component("register", ["loss", "model_name", "run_id"], ["model_version"]),
        },
        "deploymentSpec": {
            "executors": {
                "exec-judge": {"container": {"image": "cuda", "args": ["--function_to_execute", "evaluate_model"]}},
                "exec-register": {"container": {"image": "cpu", "args": ["--function_to_execute", "register_model"]}},
            }
        },
    }


def test_steps_come_in_order_with_their_conditions(pipeline: dict[str, Any]) -> None:
    judge, register = ir.tasks(pipeline)
    assert (judge.name, judge.step, judge.image) == ("judge", "evaluate_model", "cuda")
    assert judge.parameters == {"model": Source(name="model")} and judge.conditions == ()
    assert register.conditions == (Source("judge", "passed"),)
    assert register.parameters == {
        "loss": Source("judge", "loss"),
        "model_name": Source(name="model"),
        "run_id": Source(constant="{{$.pipeline_job_uuid}}"),
    }
    assert ir.needs(judge) == [] and ir.needs(register) == ["judge"]


def test_a_condition_of_another_form_is_an_error(pipeline: dict[str, Any]) -> None:
    policy = pipeline["root"]["dag"]["tasks"]["register-when-passed"]["triggerPolicy"]
    policy["condition"] = policy["condition"].replace("true", "false")
    with pytest.raises(ValueError, match="a condition of another form"):
        ir.tasks(pipeline)
