"""A run as Kubeflow's page starts it: from the uploaded version, each field as the form sends it."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import kfp_server_api
import pytest

from tests.cluster.conftest import Installed
from tests.cluster.test_runs import config, task_states


def terminate(installed: Installed, run_id: str) -> None:
    """Ends a run as the page's button does."""
    kfp_server_api.RunServiceApi(installed.kubeflow()).run_service_terminate_run(run_id)


def versions(installed: Installed) -> list[Any]:
    """The uploaded versions of the pipeline, the newest first."""
    pipelines = kfp_server_api.PipelineServiceApi(installed.kubeflow())
    pipeline = pipelines.pipeline_service_get_pipeline_by_name("qlora-finetune", namespace=installed.team)
    found = pipelines.pipeline_service_list_pipeline_versions(pipeline.pipeline_id, sort_by="created_at desc")
    return list(found.pipeline_versions)


def start(installed: Installed, parameters: dict[str, Any]) -> str:
    """Starts a run of the newest uploaded version; returns its id."""
    server, team = installed.kubeflow(), installed.team
    newest = versions(installed)[0]
    reference = kfp_server_api.V2beta1PipelineVersionReference(
        pipeline_id=newest.pipeline_id, pipeline_version_id=newest.pipeline_version_id
    )
    experiment = kfp_server_api.V2beta1Experiment(display_name=f"form-{uuid.uuid4().hex[:8]}", namespace=team)
    made = kfp_server_api.ExperimentServiceApi(server).experiment_service_create_experiment(experiment)
    run = kfp_server_api.V2beta1Run(
        display_name="from the form",
        experiment_id=made.experiment_id,
        pipeline_version_reference=reference,
        runtime_config=kfp_server_api.V2beta1RuntimeConfig(parameters=parameters),
    )
    return str(kfp_server_api.RunServiceApi(server).run_service_create_run(run).run_id)


def wait(installed: Installed, run_id: str) -> dict[str, str]:
    """The states of its tasks when it has ended."""
    deadline = time.monotonic() + 900
    while (states := task_states(installed, run_id))["run"] not in ("SUCCEEDED", "FAILED"):
        assert time.monotonic() < deadline, states
        time.sleep(5)
    return states


def plan_log(installed: Installed, run_id: str) -> list[str]:
    """The lines of plan_run; none before its container has started."""
    selector = f"pipeline/runid={run_id},qlora-pipelines/step=plan-run"
    return installed.cluster.kubectl("logs", "-l", selector, "-c", "main", "--tail", "100", check=False).splitlines()


def test_every_field_as_the_form_sends_it(installed: Installed, tmp_path: Path) -> None:
    """Text fields as they stand, empty ones too; JSON typed over several lines; numbers as numbers."""
    values = config(installed, tmp_path, "tiny-form")
    values |= {
        "options": json.dumps(values["options"], indent=2),
        "base_revision": "", "eval_dataset_uri": "", "training_key": "", "claim": "",
        "node_selector": {}, "tolerations": [], "lora_r": 16, "seed": 42, "num_train_epochs": 1, "gpu_memory_gib": 0,
    }  # fmt: skip
    assert wait(installed, start(installed, values))["run"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("model_name", 'it\'s "quoted"\nand more', "model_name"),
        ("options", '{"train_qlora": {"lora_r": }', "options"),
        ("options", '{"train_qlora": {"learning_rat": 1}}', "learning_rat"),
        ("memory", "64GiB", "memory"),
        ("gpu_count", "two", "gpu_count"),
    ],
)
def test_a_field_that_is_wrong_is_one_line_of_the_plan(
    installed: Installed, tmp_path: Path, field: str, value: str, line: str
) -> None:
    values = config(installed, tmp_path, "tiny-wrong")
    run_id = start(installed, values | {"options": json.dumps(values["options"])} | {field: value})
    assert wait(installed, run_id)["run"] == "FAILED"
    errors = [text for text in plan_log(installed, run_id) if "] error: " in text]
    assert len(errors) == 1 and line in errors[0], errors
