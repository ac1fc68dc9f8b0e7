"""Text of somebody's choice in the Argo workflow's parameters: it reaches a step as text, and nothing else."""

import base64
import json
import re
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from qlora_pipelines.components.core.config.placement import PlacedRun
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.cli import step
from tests import argo_rendering
from tests.pipelines.cli.registered import qlora

GPU_TASKS = ("train-qlora", "evaluate-model", "evaluate-model-2")
REQUIRED = {"base_model": "m", "dataset_uri": "d", "model_name": "n"}
ROOT_POD = (
    '32Gi"}}}], "serviceAccountName": "admin", "containers": [{"name": "main", "image": "evil", "x": {"y": {"z": "'
)
LATER = "{{=sprig.b64dec('" + base64.b64encode(ROOT_POD.encode()).decode() + "')}}"
"""Harmless where it is put in; the controller makes it the other one when it evaluates the patch."""
REFERENCE = "{{workflow.parameters.memory}}"
GIVEN = {
    "accelerator": "nvidia.com/gpu",
    "gpu_count": "2",
    "node_selector": json.dumps({"example.com/pool": "large", "b": ""}),
    "tolerations": json.dumps(
        [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}, {"key": "a", "tolerationSeconds": 60}]
    ),
    "cpu": "4",
    "memory": "32Gi",
}
HOSTILE = [
    *((name, text) for name in GIVEN for text in (ROOT_POD, LATER, REFERENCE, "$(HF_TOKEN)", "\n")),
    ("memory", '32Gi"}]},"serviceAccountName":"admin","x":{"a":[{"'),
    ("memory", "32Gi\n"),
    ("cpu", '4", "nvidia.com/gpu": "8'),
    ("gpu_count", '1", "x/y": "1'),
    ("accelerator", 'nvidia.com/gpu": "1", "x/y'),
    ("node_selector", '{"a":"b"},"hostNetwork":true'),
    ("node_selector", '{"a": "b"}, "hostNetwork": true, "x": {"c": "d"}'),
    ("node_selector", '{"a": "b\\", \\"c"}'),
    ("tolerations", '[], "hostPID": true'),
    ("tolerations", '[{"key": "a"}], "volumes": [{"name": "root", "hostPath": {"path": "/"}}], "x": [{"key": "b"}]'),
    ("tolerations", '[{"key": "a", "operator": {"b": "c"}}]'),
]  # fmt: skip


@pytest.fixture(scope="module")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("argo") / "workflow.yaml"
    assert qlora("compile", "--format", "argo", path).exit_code == 0
    return yaml.safe_load(path.read_text())


def patch(workflow: Any, task: str, **inputs: str) -> Any:
    """A GPU step's patch; Argo reads JSON, and what is not JSON as YAML."""
    names = [each["name"] for each in _template(workflow, task)["inputs"]["parameters"]]
    given = dict.fromkeys(names, "x") | GIVEN | inputs
    rendered = argo_rendering.alone(workflow, task, given, argo_rendering.of_workflow(workflow, {}))
    return yaml.safe_load(rendered["podSpecPatch"])


def _template(workflow: Any, name: str) -> Any:
    return next(each for each in workflow["spec"]["templates"] if each["name"] == name)


def assert_only_places(found: Any) -> None:
    assert found.keys() == {"nodeSelector", "tolerations", "containers"}
    [container] = found["containers"]
    assert container.keys() == {"name", "resources"} and container["name"] == "main"
    assert container["resources"].keys() == {"requests", "limits"}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


@pytest.mark.parametrize("task", GPU_TASKS)
def test_what_plan_run_writes_is_taken(workflow: Any, task: str) -> None:
    found = patch(workflow, task)
    assert_only_places(found)
    assert found["nodeSelector"] == json.loads(GIVEN["node_selector"])
    assert found["tolerations"] == json.loads(GIVEN["tolerations"])
    assert found["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "32Gi"}, "limits": {"nvidia.com/gpu": "2", "memory": "32Gi"},
    }  # fmt: skip
    assert patch(workflow, task, node_selector="{}", tolerations="[]")["nodeSelector"] == {}
    without = patch(workflow, task, accelerator="", gpu_count="0")
    assert without["containers"][0]["resources"]["limits"] == {"memory": "32Gi"}


@pytest.mark.parametrize(("name", "text"), HOSTILE)
def test_a_patch_changes_resources_and_place_alone(workflow: Any, name: str, text: str) -> None:
    """The workflow may be started at any template, without plan_run."""
    for task in GPU_TASKS:
        found = patch(workflow, task, **{name: text})
        assert_only_places(found)
        if (name, text) != ("memory", REFERENCE):  # that is replaced by 32Gi
            # What is no quantity, object or list there is an error of Argo's: no pod is made.
            resources = found["containers"][0]["resources"]
            quantities = [*resources["requests"].values(), *resources["limits"].values()]
            assert "refused" in (found["nodeSelector"], found["tolerations"], *quantities)


@pytest.mark.parametrize(("name", "text"), HOSTILE)
def test_plan_run_refuses_it_before_any_patch(name: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}"):
        PlacedRun.parse(**REQUIRED | {name: text})


def test_no_pod_is_patched_with_what_plan_run_has_not_seen(workflow: Any) -> None:
    for template in workflow["spec"]["templates"]:
        assert ("podSpecPatch" in template) == (template["name"] in GPU_TASKS)
        if template["name"] != "pipeline":  # the exit template has no inputs, but encodes at once what it names
            named = re.findall(r"[\w.]*\(?workflow\.parameters", json.dumps(template))
            assert set(named) <= ({"sprig.b64enc(workflow.parameters"} if template["name"] == "notify" else set())
    for task in _template(workflow, "pipeline")["dag"]["tasks"]:
        if task["name"] in GPU_TASKS:
            given = {each["name"]: each["value"] for each in task["arguments"]["parameters"]}
            for name in GIVEN.keys() - {"gpu_count"}:
                assert given[name] == f"{{{{tasks.plan-run.outputs.parameters.{name}}}}}"


TEXTS = ["$(HF_TOKEN)", "{{workflow.uid}}", "{{=sprig.b64dec('JA==')}}(HF_TOKEN)", LATER, 'a" --b', "ü\n", "{{", "{{="]


@pytest.mark.parametrize("text", TEXTS)
def test_a_parameter_reaches_every_step_as_it_was_given(workflow: Any, text: str) -> None:
    """Neither evaluated by Argo nor replaced by Kubernetes, which knows the pod's secrets by their variables."""
    parameters = dict.fromkeys((each["name"] for each in workflow["spec"]["arguments"]["parameters"]), text)
    seen = 0
    for task in _template(workflow, "pipeline")["dag"]["tasks"]:
        references = re.findall(r"\{\{(tasks\.[^}]+)\}\}", json.dumps(task["arguments"]))
        outputs = dict.fromkeys(references, "output")
        rendered = argo_rendering.in_its_task(workflow, task["name"], parameters, outputs)
        arguments = rendered["container"]["args"]
        assert not re.search(r"\{\{|\$\(", json.dumps(arguments))
        encoded = dict(each.split("=", 1) for each in arguments[arguments.index("--base64") + 1 :])
        decoded = {flag: base64.b64decode(value, validate=True).decode() for flag, value in encoded.items()}
        for each in task["arguments"]["parameters"]:
            if "workflow.parameters" in each["value"]:
                assert decoded["--" + each["name"].replace("_", "-")] == text
                seen += 1
    assert seen == 28


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_a_step_started_alone_reads_no_secret(workflow: Any, text: str) -> None:
    """The last text is an error of Argo's here, before there is a pod."""
    for task in _template(workflow, "pipeline")["dag"]["tasks"]:
        inputs = dict.fromkeys((each["name"] for each in task["arguments"]["parameters"]), text)
        rendered = argo_rendering.alone(workflow, task["name"], inputs, argo_rendering.of_workflow(workflow, {}))
        assert not re.search(r"\{\{|\$\(", json.dumps(rendered["container"]["args"]))


@pytest.mark.parametrize("text", ["s3://evil/$(HF_TOKEN)", "{{=sprig.randAlpha(3)}}", "a{{workflow.uid}}"])
@pytest.mark.parametrize("name", ["base_model", "dataset_uri", "model_name", "base_revision"])
def test_plan_run_hands_on_nothing_that_others_would_replace(name: str, text: str) -> None:
    """What it is given, it hands on as results, which Argo writes into the arguments of later steps."""
    flag, encoded = "--" + name.replace("_", "-"), base64.b64encode(text.encode()).decode()
    result = CliRunner().invoke(step.make("plan_run"), ["--base64", f"{flag}={encoded}"])
    assert result.exit_code == 2 and f"{flag}: leave out {{{{ and $(" in result.output


def test_pods_drop_what_they_do_not_need(workflow: Any) -> None:
    assert workflow["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for template in workflow["spec"]["templates"]:
        if template["name"] != "pipeline":
            assert template["container"]["securityContext"] == {
                "allowPrivilegeEscalation": False, "runAsNonRoot": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
