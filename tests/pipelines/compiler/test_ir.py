"""The compiled pipeline as a flat list of steps, from specs written by hand."""

from typing import Any

import pytest

from qlora_pipelines.pipelines.compiler import ir
from qlora_pipelines.pipelines.compiler.ir import Source


def step(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"componentRef": {"name": f"comp-{name}"}, "inputs": {"parameters": inputs}}


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
    """Evaluation, and registration under a condition, whose evidence is one dict as kfp compiles it."""
    placeholder = "{{$.inputs.parameters['pipelinechannel--%s']}}"
    evidence = {"base": placeholder % "model", "loss": placeholder % "judge-loss", "by": "hand"}
    register = {
        "evidence": {"runtimeValue": {"constant": evidence}},
        "model_name": given("pipelinechannel--model"),
        "pipelinechannel--judge-loss": given("pipelinechannel--judge-loss"),
        "pipelinechannel--model": given("pipelinechannel--model"),
    }
    condition = {
        "componentRef": {"name": "comp-condition-1"},
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
            "comp-register": component("register", ["evidence", "model_name"], ["model_version"]),
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
    assert ir.needs(judge) == [] and ir.needs(register) == ["judge"]


def test_the_entries_of_a_dict_have_sources_of_their_own(pipeline: dict[str, Any]) -> None:
    register = ir.tasks(pipeline)[1]
    assert register.parameters == {
        "model_name": Source(name="model"),
        "evidence": Source(
            constant={"base": Source(name="model"), "loss": Source("judge", "loss"), "by": Source(constant="hand")}
        ),
    }


def test_a_step_needs_what_only_an_entry_of_a_dict_refers_to() -> None:
    evidence = Source(constant={"loss": Source("judge", "loss"), "by": Source(constant="hand")})
    task = ir.Task("register", "register_model", "cpu", {"evidence": evidence}, {}, (), (), ())
    assert ir.needs(task) == ["judge"]


def test_a_condition_of_another_form_is_an_error(pipeline: dict[str, Any]) -> None:
    policy = pipeline["root"]["dag"]["tasks"]["register-when-passed"]["triggerPolicy"]
    policy["condition"] = policy["condition"].replace("true", "false")
    with pytest.raises(ValueError, match="register-when-passed: a condition of another form"):
        ir.tasks(pipeline)


def test_argo_gives_a_dict_entry_by_entry(pipeline: dict[str, Any]) -> None:
    import yaml

    from qlora_pipelines.pipelines.compiler import argo
    from qlora_pipelines.pipelines.placement import Cluster

    first, _, register = yaml.safe_load(argo.manifest(pipeline, Cluster()))["spec"]["templates"]
    arguments = {each["name"]: each["value"] for each in first["dag"]["tasks"][1]["arguments"]["parameters"]}
    assert arguments == {
        "evidence_base": "{{workflow.parameters.model}}",
        "evidence_loss": "{{tasks.judge.outputs.parameters.loss}}",
        "evidence_by": "hand",
        "model_name": "{{workflow.parameters.model}}",
    }
    assert register["container"]["args"] == [
        "step",
        "register_model",
        "--evidence=base={{inputs.parameters.evidence_base}}",
        "--evidence=loss={{inputs.parameters.evidence_loss}}",
        "--evidence=by={{inputs.parameters.evidence_by}}",
        "--model-name={{inputs.parameters.model_name}}",
        "--results=/tmp/qlora/results",
    ]
    assert {each["name"] for each in register["inputs"]["parameters"]} == set(arguments)
