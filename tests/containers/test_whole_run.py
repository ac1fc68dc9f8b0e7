"""The whole pipeline, each step in a container and not as root, with its store on S3 and an MLflow with logins."""

import os
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.registry import manifest, mlflow_client
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.pipelines import run_file
from qlora_pipelines.pipelines.local import runner
from qlora_pipelines.pipelines.tasks import End
from tests.conftest import conversation, write_jsonl

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]
HANDED_ON = ("QLORA_", "MLFLOW_", "AWS_ACCESS", "AWS_SECRET", "AWS_DEFAULT", "AWS_ENDPOINT")


def run_in_containers(values: dict[str, Any], runs: Path) -> runner.Outcome:
    from kfp.local import DockerRunner

    environment = {name: value for name, value in os.environ.items() if name.startswith(HANDED_ON)}
    containers = DockerRunner(network_mode="host", environment=environment, shm_size="1g")
    before = os.umask(0)  # the containers' user writes into the run's folder
    try:
        return runner.run(run_file.of(values), runs, containers)
    finally:
        os.umask(before)


def run_values(store: str, base: Path, folder: Path) -> dict[str, Any]:
    storage.upload(base, f"{store}/base")
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    storage.upload_file(write_jsonl(folder / "rows.jsonl", rows), f"{store}/rows.jsonl")
    return {
        "base_model": f"{store}/base",
        "dataset_uri": f"{store}/rows.jsonl",
        "model_name": "in-containers",
        "max_length": 64,
        "learning_rate": 0.01,
        "options": {
            "prepare_dataset": {"eval_share": 0.2},
            "train_qlora": {"max_steps": 20, "batch_tokens": 512},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4},
        },
    }


@pytest.fixture
def values(mlflow_server: str, own_store: str, tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return run_values(own_store, tiny_model, tmp_path)


def test_a_model_is_registered_from_inside_containers(
    step_images: None, values: dict[str, Any], own_store: str, tmp_path: Path
) -> None:
    outcome = run_in_containers(values, tmp_path)
    assert outcome.end == End.DONE, (outcome.folder / "log.txt").read_text()[-5000:]
    version = mlflow_client.connect().get_model_version_by_alias("in-containers", "champion")
    assert version.source.startswith(own_store)
    files = manifest.read(version.source, version.tags["qlora.manifest_sha256"]).files
    assert "model/model.safetensors" in files and "adapter/adapter_model.safetensors" in files
    written = [path for path in (outcome.folder / "tasks").rglob("*") if path.is_file()]
    assert {path.stat().st_uid for path in written} == {1000}
    assert not [path for path in written if path.name.startswith("model") and path.suffix == ".safetensors"]
    assert len(list((outcome.folder / "reports").iterdir())) == 5


def test_a_container_that_fails_says_why_in_one_line(
    step_images: None, values: dict[str, Any], own_store: str, tmp_path: Path
) -> None:
    outcome = run_in_containers(values | {"dataset_uri": f"{own_store}/none.jsonl"}, tmp_path)
    assert outcome.end == End.FAILED and outcome.error.startswith("plan_run: ") and "none.jsonl" in outcome.error
