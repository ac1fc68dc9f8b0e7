"""What `qlora compile` writes besides the golden pipeline: manifests, an Argo WorkflowTemplate, components."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.cli import step
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from tests import argo_rendering
from tests.pipelines.cli.registered import qlora, refused

GPU_TASKS = {"train-qlora", "evaluate-model", "evaluate-model-2"}


def written(form: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    result = qlora("compile", "--format", form, folder / "out.yaml", *arguments)
    assert result.exit_code == 0, result.output
    return list(yaml.safe_load_all((folder / "out.yaml").read_text()))


@pytest.mark.parametrize("option", [("--format", "argo"), ("--disk", "9Gi"), ("--pod-label", "a", "b")])
def test_components_take_no_option_of_a_cluster(option: tuple[str, ...], tmp_path: Path) -> None:
    result = qlora("compile", "--components", tmp_path / "out", *option)
    assert result.exit_code == 2 and "--components takes no --format, --cache-pvc, --disk" in result.output
    assert not (tmp_path / "out").exists()


def test_manifests_hold_the_same_pipeline(tmp_path: Path) -> None:
    pipeline, version = written("kubernetes", tmp_path)
    golden, platform = yaml.safe_load_all(GOLDEN.read_text())
    assert pipeline["kind"] == "Pipeline" and version["kind"] == "PipelineVersion"
    assert version["apiVersion"] == pipeline["apiVersion"] == "pipelines.kubeflow.org/v2beta1"
    assert version["spec"]["pipelineName"] == pipeline["metadata"]["name"] == "qlora-finetune"
    assert re.fullmatch(r"[a-z0-9.-]{1,63}", version["metadata"]["name"])
    assert version["spec"]["pipelineSpec"] == golden and version["spec"]["platformSpec"] == platform


@pytest.fixture(scope="module")
def argo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return written("argo", tmp_path_factory.mktemp("argo"))[0]


def templates(argo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {template["name"]: template for template in argo["spec"]["templates"]}


def dag(argo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["name"]: task for task in templates(argo)["pipeline"]["dag"]["tasks"]}


def test_argo_has_every_step_and_heras_models_take_it(argo: dict[str, Any]) -> None:
    from hera.workflows import models

    models.WorkflowTemplate.model_validate(argo)
    steps = [templates(argo)[name]["container"]["args"][1] for name in dag(argo)]
    assert len(steps) == 8 and set(steps) == set(placement.STEPS) - {"notify"}
    assert "{{$" not in json.dumps(argo) and "pipelinechannel" not in json.dumps(argo)


def test_argo_tells_people_when_the_workflow_has_ended(argo: dict[str, Any]) -> None:
    assert argo["spec"]["onExit"] == "notify"
    template = templates(argo)["notify"]
    assert "inputs" not in template, "Argo gives an exit template none"
    assert template["container"]["args"][1:] == [
        "notify",
        "--results=/tmp/qlora/results",
        "--base64",
        "--model-name={{=sprig.b64enc(workflow.parameters.model_name)}}",
        "--run-id={{=sprig.b64enc(workflow.uid)}}",
        "--run-name={{=sprig.b64enc(workflow.name)}}",
        "--state={{=sprig.b64enc(workflow.status)}}",
        "--failures={{=sprig.b64enc(workflow.failures)}}",
    ]
    for name, each in templates(argo).items():
        if name != "pipeline":
            assert {"name": "QLORA_RUN_ID", "value": "{{workflow.uid}}"} in each["container"]["env"]


def test_what_argo_mounts_is_in_no_folder_that_a_step_writes_to(argo: dict[str, Any]) -> None:
    """The kubelet makes the folders above a mount, and makes them root's."""
    for template in templates(argo).values():
        mounted = [each["path"] for each in template.get("inputs", {}).get("artifacts", [])]
        outputs = template.get("outputs", {})
        written = [each["valueFrom"]["path"] for each in outputs.get("parameters", [])]
        written += [each["path"] for each in outputs.get("artifacts", [])]
        tops = [{str(Path(path).parents[-3]) for path in paths} for paths in (mounted, written)]
        assert not tops[0] & tops[1], template["name"]


def test_argo_has_the_same_gate(argo: dict[str, Any]) -> None:
    tuned, merged = ("{{tasks.evaluate-model%s.outputs.parameters.passed}} == true" % number for number in ("", "-2"))  # noqa: UP031
    gates = {name: task.get("when") for name, task in dag(argo).items() if task.get("when")}
    both = f"{tuned} && {merged}"
    assert gates == {"dequantize-and-merge": tuned, "evaluate-model-2": tuned, "register-model": both}
    for task in dag(argo).values():
        assert all(part.endswith(".Succeeded") for part in task.get("depends", "a.Succeeded").split(" && "))


def test_the_digests_go_from_the_steps_that_make_something_through_the_gate_into_registration(
    argo: dict[str, Any],
) -> None:
    given = {
        name: {each["name"]: each["value"] for each in task["arguments"]["parameters"] if "digest" in each["name"]}
        for name, task in dag(argo).items()
    }
    adapter, merged = (
        f"{{{{tasks.{step}.outputs.parameters.{name}}}}}"
        for step, name in (("train-qlora", "adapter_digest"), ("dequantize-and-merge", "merged_digest"))
    )
    assert given["evaluate-model"]["adapter_digest"] == given["dequantize-and-merge"]["adapter_digest"] == adapter
    assert given["evaluate-model-2"]["merged_digest"] == merged
    assert given["register-model"] == {"adapter_digest": adapter, "merged_digest": merged}


def test_argo_references_nothing_that_is_not_there(argo: dict[str, Any]) -> None:
    parameters = {parameter["name"] for parameter in argo["spec"]["arguments"]["parameters"]}
    for name, task in dag(argo).items():
        text, waits = json.dumps(task), set(re.findall(r"([\w-]+)\.Succeeded", task.get("depends", "")))
        for other, kind, output in re.findall(r"\{\{tasks\.([\w-]+)\.outputs\.(\w+)\.(\w+)\}\}", text):
            assert other in waits, f"{name} does not wait for {other}"
            assert output in {each["name"] for each in templates(argo)[other]["outputs"][kind]}
        template = templates(argo)[name]
        text += json.dumps(template)
        assert set(re.findall(r"workflow\.parameters\.(\w+)", text)) <= parameters
        given = {each["name"] for each in task["arguments"]["parameters"]}
        assert given == {each["name"] for each in template["inputs"]["parameters"]}
        assert set(re.findall(r"inputs\.parameters\.(\w+)", text)) == given
        command = step.make(template["container"]["args"][1])
        flags = {flag for parameter in command.params for flag in parameter.opts}
        assert {argument.partition("=")[0] for argument in template["container"]["args"][2:]} <= flags


def test_argo_pods_get_what_kubeflows_get(argo: dict[str, Any], tmp_path: Path) -> None:
    assert argo["spec"]["securityContext"] == {
        "runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": True, "fsGroup": 1000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    for name, template in templates(argo).items():
        if name == "pipeline":
            continue
        needs = placement.STEPS[template["container"]["args"][1]]
        sources = [entry["valueFrom"] for entry in template["container"]["env"] if "valueFrom" in entry]
        secrets = [source["secretKeyRef"] for source in sources if "secretKeyRef" in source]
        assert all(secret["optional"] for secret in secrets)
        assert {secret["name"] for secret in secrets} == set(needs.secrets)
        mounted = [volume["secret"] for volume in template["volumes"] if "secret" in volume]
        assert all(secret["optional"] for secret in mounted)
        assert {secret["secretName"] for secret in mounted} == set(needs.secret_folders)
        others = [volume for volume in template["volumes"] if "secret" not in volume]
        assert others == [{"name": "shm", "emptyDir": {"medium": "Memory"}}] * (name in GPU_TASKS)
        configured = [source["configMapKeyRef"]["key"] for source in sources if "configMapKeyRef" in source]
        assert set(configured) == set(needs.config_keys)
        assert template["activeDeadlineSeconds"] == needs.minutes * 60
        assert ("retryStrategy" in template) == bool(needs.retries)
        if name in GPU_TASKS:
            patch = pod_patch(argo, name, accelerator="nvidia.com/gpu", gpu_count="4")
            assert patch["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "4", "memory": "64Gi"}
            assert patch["nodeSelector"] == {"a": "b"}
        else:
            assert template["container"]["resources"]["limits"] == {"memory": needs.memory}


def pod_patch(argo: dict[str, Any], name: str, **inputs: str) -> dict[str, Any]:
    """A GPU step's patch of its pod as Argo makes it."""
    given = dict.fromkeys((each["name"] for each in templates(argo)[name]["inputs"]["parameters"]), "")
    given |= {"node_selector": '{"a": "b"}', "cpu": "8", "memory": "64Gi", "tolerations": "[]"} | inputs
    rendered = argo_rendering.alone(argo, name, given, argo_rendering.of_workflow(argo, {}))
    patch: dict[str, Any] = json.loads(rendered["podSpecPatch"])
    return patch


def test_argo_pods_without_a_gpu_name_none(argo: dict[str, Any]) -> None:
    for name in GPU_TASKS:
        patch = pod_patch(argo, name, accelerator="", gpu_count="0")
        assert patch["containers"][0]["resources"]["limits"] == {"memory": "64Gi"} and patch["tolerations"] == []


def test_argo_evaluates_on_one_gpu_and_trains_on_all(argo: dict[str, Any]) -> None:
    for name in GPU_TASKS:
        given = {each["name"]: each["value"] for each in dag(argo)[name]["arguments"]["parameters"]}
        planned = "{{tasks.plan-run.outputs.parameters.gpu_count}}"
        assert given["gpu_count"] == (planned if name == "train-qlora" else "1")
        for output in ("accelerator", "node_selector", "tolerations", "cpu", "memory"):
            assert given[output] == f"{{{{tasks.plan-run.outputs.parameters.{output}}}}}"


def test_argo_pods_carry_the_labels_that_are_asked_for(tmp_path: Path) -> None:
    label = "azure.workload.identity/use"
    found = templates(written("argo", tmp_path, "--pod-label", label, "true", "--pod-label", "team", "a")[0])
    for name, template in found.items():
        if name != "pipeline":
            step = template["container"]["args"][1].replace("_", "-")
            assert template["metadata"]["labels"] == {placement.STEP_LABEL: step, label: "true", "team": "a"}


@pytest.mark.parametrize("disk", ["200Gi", "200G"])
def test_argo_reserves_disk_and_keeps_bases(tmp_path: Path, disk: str) -> None:
    found = templates(written("argo", tmp_path, "--disk", disk, "--cache-pvc", "bases")[0])
    assert found["plan-run"]["container"]["resources"]["requests"]["ephemeral-storage"] == disk
    assert f'"ephemeral-storage": "{disk}"' in found["train-qlora"]["podSpecPatch"]
    assert {"name": "bases", "mountPath": "/var/cache/qlora"} in found["train-qlora"]["container"]["volumeMounts"]
    assert all("secret" in volume for volume in found["plan-run"]["volumes"])


def test_what_argo_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("qlora_pipelines.pipelines.compiler.argo", raising=False)
    monkeypatch.delitem(sys.modules, "qlora_pipelines.pipelines.compiler.argo", raising=False)
    monkeypatch.setitem(sys.modules, "hera.workflows", None)
    assert "pip install 'qlora-pipelines[argo]'" in refused("compile", "--format", "argo", tmp_path / "out.yaml")
    assert not (tmp_path / "out.yaml").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--disk", "200GiB"), "disk: Kubernetes writes this 200Gi"),
        (("--cache-pvc", "My_Claim"), "cache_pvc: "),
        (("--pod-label", "team", "a b"), "pod_labels.team: "),
    ],
)
def test_a_wrong_choice_is_one_line(option: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert message in refused("compile", tmp_path / "out.yaml", *option)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "give another place, or make room and rights there" in refused(
        "compile", tmp_path / "file" / "pipeline.yaml"
    )


def test_a_component_works_in_a_pipeline_of_somebody_elses(tmp_path: Path, tiny_model: Path, place: Path) -> None:
    from kfp import components, dsl, local

    assert qlora("compile", "--components", tmp_path / "c").exit_code == 0
    assert {path.parent.name for path in tmp_path.glob("c/*/component.yaml")} == set(placement.STEPS)
    stage = components.load_component_from_file(str(tmp_path / "c" / "stage_base_model" / "component.yaml"))

    @dsl.pipeline
    def theirs(model: str) -> str:
        return stage(base_model=model).outputs["base_uri"]

    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    assert theirs(model=str(tiny_model)).output == str(tiny_model)
