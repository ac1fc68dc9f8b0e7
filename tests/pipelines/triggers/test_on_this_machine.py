"""`qlora trigger --local`: a new file in a folder starts a run on this machine, the same file again does not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qlora_pipelines.pipelines.triggers.on_this_machine import LocalRuns
from tests.conftest import conversation, write_jsonl

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "six"]


def trigger(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [
        Path(sys.executable).parent / "qlora",
        "trigger",
        "--local",
        "--json",
        "--config",
        "run.yaml",
        *arguments,
    ]
    unset = {"QLORA_STORE", "MLFLOW_TRACKING_URI"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"exit_code": done.returncode}


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "data").mkdir()
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    write_jsonl(tmp_path / "data" / "a.jsonl", rows)
    run = {
        "base_model": str(tiny_model),
        "dataset_uri": "data",
        "model_name": "tiny",
        "max_length": 64,
        "options": {
            "train_qlora": {"max_steps": 2, "batch_tokens": 512},
            "evaluate_model": {"generation_rows": 0, "min_improvement": 100},
        },
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    return tmp_path


def test_new_data_starts_a_run_and_the_same_does_not(folder: Path) -> None:
    first = trigger(folder)
    assert (first["action"], first["outcome"], first["exit_code"]) == ("started", "gate_said_no", 3), first
    assert (folder / "runs").is_dir() and Path(first["folder"]).is_dir()
    again = trigger(folder)
    assert (again["action"], again["exit_code"]) == ("unchanged", 0)
    assert first["folder"] in again["reason"]
    write_jsonl(folder / "data" / "b.jsonl", [conversation("another", "row")])
    assert trigger(folder, "--dry-run", "--min-new-rows", "1")["action"] == "start"
    assert trigger(folder, "--min-new-rows", "2")["reason"] == "1 rows are new; --min-new-rows asks for 2"


def test_a_failed_run_is_tried_again_and_then_given_up(folder: Path) -> None:
    run = yaml.safe_load((folder / "run.yaml").read_text())
    run["options"]["train_qlora"]["target_modules"] = "w_proj"
    (folder / "run.yaml").write_text(yaml.safe_dump(run))
    failed = trigger(folder, "--max-attempts", "1")
    assert (failed["outcome"], failed["exit_code"]) == ("failed", 1) and failed["error"].startswith("plan_run: ")
    assert trigger(folder)["action"] == "waiting"
    assert trigger(folder, "--retry-delay", "0", "--dry-run")["attempt"] == 2
    last = trigger(folder, "--max-attempts", "1", "--retry-delay", "0")
    assert (last["action"], last["exit_code"]) == ("failed", 1)


def test_while_one_runs_another_holds_off(tmp_path: Path) -> None:
    with LocalRuns.lock(tmp_path, "key", "tiny") as first:
        first.begin(1, "digest")
        with LocalRuns.lock(tmp_path, "key", "tiny") as second:
            assert not second.locked
            assert [run.state for run in second.earlier_runs()] == ["RUNNING"]
        with LocalRuns.lock(tmp_path, "other key", "tiny") as other:
            assert other.locked and other.earlier_runs() == [] and other.last_data_digest() == ""
    with LocalRuns.lock(tmp_path, "key", "tiny") as third:  # the first process died
        assert third.locked and [run.state for run in third.earlier_runs()] == ["FAILED"]
        third.begin(2, "digest")
        third.end("SUCCEEDED", "folder")
        assert [(run.state, run.attempt) for run in third.earlier_runs()] == [("FAILED", 1), ("SUCCEEDED", 2)]
    with LocalRuns.lock(tmp_path, "other key", "tiny") as other:
        assert other.last_data_digest() == "digest"
    with LocalRuns.lock(tmp_path, "other key", "another") as another:
        assert another.last_data_digest() == ""
