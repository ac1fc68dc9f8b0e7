"""The whole pipeline with its store on S3 and an MLflow server with logins; a stranger then uses what came out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from qlora_pipelines.components.core.registry import manifest, mlflow_client
from tests.conftest import conversation, write_jsonl
from tests.integration.registered import QLORA, STRANGER, check_hidden, plant
from tests.pipelines.cli.registered import write_keys

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]


def test_a_run_ends_with_a_version_that_mlflow_alone_loads(
    mlflow_server: str, own_store: str, s3_store: str, tiny_model: Path, tmp_path: Path
) -> None:
    private, _ = write_keys(tmp_path, "ours")
    planted = plant(private)
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    config = {
        "base_model": str(tiny_model),
        "dataset_uri": str(write_jsonl(tmp_path / "rows.jsonl", rows)),
        "model_name": "whole",
        "max_length": 64,
        "learning_rate": 0.01,
        "options": {
            "prepare_dataset": {"eval_share": 0.2},
            "train_qlora": {"max_steps": 20, "batch_tokens": 512},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    command = [QLORA, "run", "--config", str(tmp_path / "run.yaml"), "--runs", str(tmp_path / "runs"), "--json"]
    environment = os.environ | {"HF_TOKEN": planted["HF_TOKEN"], "QLORA_SIGNING_KEY": str(private)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Registered models:/whole@champion (version 1)" in done.stdout
    version = mlflow_client.connect().get_model_version_by_alias("whole", "champion")
    tags = {name.removeprefix("qlora."): value for name, value in version.tags.items()}
    expected = {"adapter_uri", "base_uri", "base_revision", "data_digest", "dataset_digest", "listing_uri", "merge_key"}
    expected |= {"manifest_sha256", "pipeline_run_id", "run_config", "training_key", "version"}
    assert expected <= tags.keys() and "{{" not in tags["pipeline_run_id"]
    assert json.loads(tags["run_config"])["base_revision"] == tags["base_revision"]
    assert "adapter/adapter_model.safetensors" in manifest.read(version.source, tags["manifest_sha256"]).files
    assert len(tags["signed_by"]) == 64 and tags["reports"] == f"runs:/{version.run_id}/reports"
    client = mlflow_client.connect()
    reports = {item.path for item in client.list_artifacts(version.run_id, "reports")}
    assert reports == {f"reports/{name}.html" for name in ("1-plan", "2-data", "3-training", "4-tuned", "5-merged")}
    environment = os.environ | {"MLFLOW_S3_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL_S3"]}
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, "models:/whole@champion"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert stranger.returncode == 0, stranger.stderr[-2000:]
    texts = check_hidden(planted, "whole", [tmp_path / "runs"], [own_store, f"{s3_store}/mlflow"], done.stdout)
    print(f"\na whole run: {len(planted)} planted secrets, {texts} texts and files without them")
