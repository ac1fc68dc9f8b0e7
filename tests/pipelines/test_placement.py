"""What the compiled pipeline asks of Kubernetes, read from the compiled YAML."""

import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.dsl import PipelineTask
from mlflow.store.artifact import azure_blob_artifact_repo

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.components.notify import message, webhook
from qlora_pipelines.pipelines import placement, run_file
from qlora_pipelines.pipelines.compiler import ir, kubeflow
from qlora_pipelines.pipelines.docgen.reference import GOLDEN
from qlora_pipelines.pipelines.placement import Cluster

MINIMAL = {"base_model": "b", "dataset_uri": "d", "model_name": "n"}
GPU_TASKS = {"train-qlora", "evaluate-model", "evaluate-model-2"}


def compiled(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    pipeline, platform = yaml.safe_load_all(text)
    return pipeline, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


PIPELINE, KUBERNETES = compiled(GOLDEN.read_text())


def tasks(pipeline: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of every DAG that is a step, by name."""
    for dag in [pipeline["root"], *pipeline["components"].values()]:
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in pipeline["components"][task["componentRef"]["name"]]:
                yield name, task


def container(name: str) -> dict[str, Any]:
    found: dict[str, Any] = PIPELINE["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
    return found


def step_of(task: str) -> str:
    return re.sub(r"-\d+$", "", task).replace("-", "_")


TASKS = [name for name, _ in tasks(PIPELINE)]


def environment(task: str, kind: str) -> dict[str, set[str]]:
    name = {"configMapAsEnv": "configMapName", "secretAsEnv": "secretName"}[kind]
    found = KUBERNETES[f"exec-{task}"].get(kind, [])
    assert all(source["optional"] for source in found), task
    return {source[name]: {pair["envVar"] for pair in source["keyToEnv"]} for source in found}


def test_every_pod_says_which_step_it_is() -> None:
    for task in TASKS:
        labels = KUBERNETES[f"exec-{task}"]["podMetadata"]["labels"]
        assert labels == {placement.STEP_LABEL: step_of(task).replace("_", "-")}


def test_every_step_has_its_place() -> None:
    assert len(TASKS) == 9 and {step_of(task) for task in TASKS} == set(placement.STEPS)


def test_gpu_steps_take_their_place_from_plan_run() -> None:
    def parameter(name: str) -> str:
        return f"{{{{$.inputs.parameters['pipelinechannel--plan-run-{name}']}}}}"

    def json_of(name: str, task: str) -> dict[str, Any]:
        inside = {"componentInputParameter": f"pipelinechannel--plan-run-{name}"}
        planned = {"taskOutputParameter": {"producerTask": "plan-run", "outputParameterKey": name}}
        return inside if task == "evaluate-model-2" else planned

    for task in TASKS:
        resources, pod = container(task)["resources"], KUBERNETES[f"exec-{task}"]
        if task not in GPU_TASKS:
            assert "accelerator" not in resources and "tolerations" not in pod
            continue
        gpus = parameter("gpu_count") if task == "train-qlora" else "1"
        assert resources["accelerator"]["resourceType"] == parameter("accelerator")
        assert resources["accelerator"]["resourceCount"] == gpus
        assert resources["resourceCpuRequest"] == parameter("cpu")
        assert resources["resourceMemoryRequest"] == resources["resourceMemoryLimit"] == parameter("memory")
        assert pod["nodeSelector"]["nodeSelectorJson"] == json_of("node_selector", task)
        assert pod["tolerations"] == [{"tolerationJson": json_of("tolerations", task)}]
        assert pod["emptyDirMounts"] == [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "shm"}]


def test_no_pod_is_placed_by_what_plan_run_has_not_checked() -> None:
    """Kubeflow starts a task's driver, which reads the placement, when the tasks that it depends on have succeeded."""
    placed = 0
    for name, path in ir.walk(PIPELINE):
        label = PIPELINE["components"][path[-1]["componentRef"]["name"]]["executorLabel"]
        resources = PIPELINE["deploymentSpec"]["executors"][label]["container"].get("resources")
        placement_of = json.dumps([resources, KUBERNETES[label]])
        assert set(re.findall(r'"producerTask": "([^"]+)"', placement_of)) <= {"plan-run"}, name
        used = set(re.findall(r"pipelinechannel--[\w-]+", placement_of))
        placed += bool(used)
        for key in used:
            source = path[1]["inputs"]["parameters"][key]["taskOutputParameter"]  # path[0] is the exit handler's group
            assert source == {"producerTask": "plan-run", "outputParameterKey": key.rsplit("-", 1)[1]}, name
            assert "plan-run" in path[1]["dependentTasks"], name
    assert placed == len(GPU_TASKS)


def undeclared(pipeline: dict[str, Any], kubernetes: dict[str, Any]) -> list[str]:
    """Parameters that a task uses but is not given, or takes from a DAG that does not declare them."""
    found = []
    for dag in [pipeline["root"], *pipeline["components"].values()]:
        declared = set(dag["inputDefinitions"].get("parameters", {}))
        for name, task in dag.get("dag", {}).get("tasks", {}).items():
            label = pipeline["components"][task["componentRef"]["name"]].get("executorLabel")
            executor = pipeline["deploymentSpec"]["executors"].get(label, {}).get("container", {})
            uses = json.dumps([task, executor.get("resources")])
            given = set(task.get("inputs", {}).get("parameters", {}))
            found += [f"{name}: {x}" for x in re.findall(r"parameters\['([^']+)'\]", uses) if x not in given]
            takes = json.dumps([task, kubernetes.get(label)])
            found += [f"{name}: {x}" for x in re.findall(r'InputParameter": "([^"]+)"', takes) if x not in declared]
    return found


def test_every_parameter_used_inside_a_sub_dag_is_declared_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubeflow's driver looks a step's placement up among the inputs of the DAG that it is in."""
    assert undeclared(PIPELINE, KUBERNETES) == []
    monkeypatch.setattr(PipelineTask, "register_pipeline_channels", lambda task, channels: None)
    with pytest.raises(AssertionError, match="pipelinechannel--plan-run"):  # what the call in placement.py is for
        kubeflow.pipeline()


def test_a_resource_comes_from_text() -> None:
    """Kubeflow's driver reads it with GetStringValue: of a number it gets nothing."""
    parameters = PIPELINE["components"]["comp-plan-run"]["outputDefinitions"]["parameters"]
    for name in ("accelerator", "gpu_count", "cpu", "memory"):
        assert parameters[name]["parameterType"] == "STRING"


def test_secrets_reach_the_steps_that_need_them_and_no_others() -> None:
    for task in TASKS:
        secrets = environment(task, "secretAsEnv")
        assert secrets["qlora-s3"] == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        assert secrets["qlora-azure"] == set(placement.AZURE_KEYS)
        assert ("qlora-hub-token" in secrets) == (task in ("plan-run", "stage-base-model", "prepare-dataset"))
        assert ("qlora-notify" in secrets) == (task == "notify")
        assert ("qlora-mlflow" in secrets) == (task in {"plan-run", "register-model", "notify"} | GPU_TASKS)
        files = {
            key["secretName"]: key["mountPath"]
            for key in KUBERNETES[f"exec-{task}"]["secretAsVolume"]
            if key["optional"]
        }
        signing = {"qlora-signing-key": "/etc/qlora/signing"} if task == "register-model" else {}
        assert files == {"qlora-gcs": "/etc/qlora/gcs"} | signing
    assert environment("plan-run", "secretAsEnv")["qlora-hub-token"] == {"HF_TOKEN"}
    assert environment("notify", "secretAsEnv")["qlora-notify"] == {webhook.URL_VARIABLE, webhook.FORMAT_VARIABLE}
    assert {message.UI_VARIABLE} <= environment("notify", "configMapAsEnv")["qlora-pipelines"]


def test_addresses_come_from_the_config_map() -> None:
    for task in TASKS:
        assert set(placement.CONFIG_KEYS) <= environment(task, "configMapAsEnv")["qlora-pipelines"]


def test_no_variable_is_one_that_kubeflows_driver_keeps_for_itself() -> None:
    """It refuses a step that sets one (validateReservedRuntimeEnvVar, kubeflow/pipelines #13986)."""
    every = placement.Cluster(cache_pvc="cache", disk="1Gi", pod_labels={"team": "a"})
    for text in (GOLDEN.read_text(), kubeflow.pipeline(every)):
        for reserved in ("NAMESPACE", "KFP_POD_NAME", "KFP_POD_UID"):
            assert not re.search(rf"(name|envVar|name'): ['\"]?{reserved}['\"]?$", text, re.MULTILINE), reserved
        assert re.search(rf"(name|envVar): ['\"]?{outcomes.RUN_VARIABLE}['\"]?$", text, re.MULTILINE)


def test_the_credentials_variables_are_ones_that_mlflow_and_the_store_know() -> None:
    # MLflow and the libraries that it reads Azure and Google with; obstore's own list is in its type stubs.
    stubs = Path(importlib.import_module("obstore").__file__ or "").parent / "_store"
    known = "".join(path.read_text() for path in stubs.glob("*.pyi"))
    for key in (*placement.S3_KEYS, *placement.AZURE_KEYS, *placement.CONFIG_KEYS):
        if key.startswith(("AWS_ACCESS", "AWS_SECRET", "AZURE_", "GOOGLE_")):
            assert f"`{key}`" in known, key
    assert placement.AZURE_KEYS[0] in inspect.getsource(azure_blob_artifact_repo)


def test_no_secret_is_in_the_compiled_file() -> None:
    text = GOLDEN.read_text()
    assert "hf_" not in text and "env:" not in text


def test_pods_run_as_a_user_who_is_not_root_and_end_some_day() -> None:
    for task in TASKS:
        pod = KUBERNETES[f"exec-{task}"]
        assert pod["securityContext"] == {"runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True}
        assert (900 if task == "notify" else 3600) <= int(pod["activeDeadlineSeconds"]) <= 7 * 24 * 3600


def test_retries_wait_and_have_time() -> None:
    """Argo ends retries, and the step, backoffMaxDuration after its first start (kubeflow/pipelines #14245)."""
    for name, task in tasks(PIPELINE):
        if name in ("plan-run", "notify"):
            assert "retryPolicy" not in task
            continue
        policy = task["retryPolicy"]
        seconds = int(KUBERNETES[f"exec-{name}"]["activeDeadlineSeconds"])
        assert policy["backoffDuration"] == "10s" and policy["backoffFactor"] == 2
        assert int(policy["backoffMaxDuration"].rstrip("s")) >= seconds * (policy["maxRetryCount"] + 1)


def test_only_steps_whose_results_are_values_are_cached() -> None:
    cached = {name for name, task in tasks(PIPELINE) if task["cachingOptions"].get("enableCache")}
    assert cached == {"prepare-dataset", "train-qlora", "evaluate-model", "evaluate-model-2"}


def test_what_kubeflow_takes_no_parameter_for_is_chosen_at_compile_time() -> None:
    labels = {"azure.workload.identity/use": "true"}
    cluster = Cluster(cache_pvc="bases", disk="200Gi", pod_labels=labels)
    pipeline, kubernetes = compiled(kubeflow.pipeline(cluster))
    for name in TASKS:
        pod = kubernetes[f"exec-{name}"]
        assert labels.items() <= pod["podMetadata"]["labels"].items()
        assert {"mountPath": "/tmp", "sizeLimit": "200Gi", "volumeName": "tmp"} in pod["emptyDirMounts"]
        mounts = [(mount["constant"], mount["mountPath"]) for mount in pod.get("pvcMount", [])]
        assert mounts == [("bases", "/var/cache/qlora")] * (name in GPU_TASKS)
        env = pipeline["deploymentSpec"]["executors"][f"exec-{name}"]["container"].get("env", [])
        assert env == [{"name": "QLORA_BASE_CACHE", "value": "/var/cache/qlora"}] * (name in GPU_TASKS)
    assert "bases" not in GOLDEN.read_text().split("deploymentSpec")[0] and "pvcMount" not in GOLDEN.read_text()


def test_the_form_needs_three_fields_and_explains_all() -> None:
    parameters = PIPELINE["root"]["inputDefinitions"]["parameters"]
    assert {name for name, field in parameters.items() if not field.get("isOptional")} == set(MINIMAL)
    assert all(len(field["description"]) > 10 for field in parameters.values())
    assert len(json.dumps(run_file.of(MINIMAL).arguments())) < 2_000


def test_text_json_and_numbers_are_all_taken() -> None:
    run = run_file.of(MINIMAL | {"cpu": 8, "memory": "1.5Gi", "tolerations": '[{"key": "spot", "operator": "Exists"}]'})
    assert run.config.cpu == "8" and run.config.tolerations[0]["key"] == "spot"
    assert run_file.of(MINIMAL | {"node_selector": {"a": "b"}}).arguments()["node_selector"] == {"a": "b"}


def test_a_gpu_for_each_process() -> None:
    options = {"train_qlora": {"processes": 4}}
    assert run_file.of(MINIMAL | {"options": options}).config.gpu_count == "4"
    with pytest.raises(InputError, match=r"gpu_count is 2 but options\.train_qlora.processes is 4"):
        run_file.of(MINIMAL | {"options": options, "gpu_count": 2})


def test_no_gpu_is_one_process() -> None:
    run = run_file.of(MINIMAL | {"gpu_count": 0})
    assert run.config.on_cpu and run.arguments()["gpu_count"] == "0"
    with pytest.raises(InputError, match=r"gpu_count is 0 but options\.train_qlora.processes is 4"):
        run_file.of(MINIMAL | {"options": {"train_qlora": {"processes": 4}}, "gpu_count": 0})
