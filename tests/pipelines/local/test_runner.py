"""The whole pipeline through kfp.local on the tiny model, each step a process of its own."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from qlora_pipelines.pipelines import placement
from qlora_pipelines.pipelines.compiler import compiled, ir
from tests import browser
from tests.components.notify.hook import Hook, serving
from tests.conftest import conversation, write_jsonl

WORDS = ["cat", "mat", "one", "two", "three", "four", "five", "system", "user", "sat"]


def run(folder: Path, base: Path, margin: float, webhook: str = "", **given: object) -> tuple[int, dict[str, Any], str]:
    rows = [conversation(f"the {first} sat on {last}", last) for first in WORDS for last in WORDS]
    config = {
        "base_model": str(base),
        "dataset_uri": str(write_jsonl(folder / "rows.jsonl", rows)),
        "model_name": "tiny",
        "max_length": 64,
        "learning_rate": 0.01,
        "memory": "16Gi",
        "node_selector": {"cloud.google.com/gke-accelerator": "nvidia-l4"},
        "options": {
            "prepare_dataset": {"eval_share": 0.2},
            "train_qlora": {"max_steps": 20, "batch_tokens": 512},
            "evaluate_model": {"generation_rows": 2, "max_new_tokens": 4, "min_improvement": margin},
        },
        **given,
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    command = [
        Path(sys.executable).parent / "qlora",
        "run",
        "--config",
        folder / "run.yaml",
        "--runs",
        folder,
        "--json",
    ]
    unset = {"QLORA_STORE", "MLFLOW_TRACKING_URI"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["QLORA_WEBHOOK_URL"] = webhook
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    with serving(Hook()) as served:
        yield served


@pytest.fixture(scope="module")
def first(folder: Path, tiny_model: Path, hook: Hook) -> tuple[int, dict[str, Any], str]:
    return run(folder, tiny_model, margin=0.1, webhook=hook.url)


def test_a_model_is_registered(first: tuple[int, dict[str, Any], str], folder: Path) -> None:
    code, outcome, output = first
    assert code == 0, output
    assert "Registered models:/tiny@champion (version 1)" in output
    for row in ("base", "tuned", "merged"):
        assert f"\n{row} " in output
    assert "Warning" not in output
    reports = {path.name for path in (Path(str(outcome["folder"])) / "reports").iterdir()}
    assert reports == {"1-plan.html", "2-data.html", "3-training.html", "4-tuned.html", "5-merged.html"}
    tags = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_model_version("tiny", "1").tags
    evidence = [
        "base_model",
        "base_revision",
        "base_uri",
        "data_digest",
        "dataset_digest",
        "training_key",
        "run_config",
        "pipeline_run_id",
        "loss",
        "base_loss",
        "exact_match",
        "base_exact_match",
        "adapter_uri",
    ]
    assert {f"qlora.{name}" for name in evidence} <= tags.keys()
    assert float(tags["qlora.loss"]) < float(tags["qlora.base_loss"])


def check_artifacts(outcome: dict[str, Any]) -> None:
    """Every declared output is written, and metrics are numbers: else Kubeflow without ML Metadata fails the step."""
    folder = Path(outcome["folder"])
    spec = compiled.from_file(folder / "pipeline.yaml").spec
    seen = set()
    for task, path in ir.walk(spec):
        component = spec["components"][path[-1]["componentRef"]["name"]]
        for name, about in component.get("outputDefinitions", {}).get("artifacts", {}).items():
            seen.add(name)
            if about["artifactType"]["schemaTitle"] == "system.Metrics":
                [written] = folder.glob(f"tasks/*/{task}/executor_output.json")
                [metrics] = json.loads(written.read_text())["artifacts"][name]["artifacts"]
                assert metrics["metadata"]
                assert all(type(value) in (int, float) for value in metrics["metadata"].values()), metrics
            else:
                assert list(folder.glob(f"tasks/*/{task}/{name}")), f"{task} has not written {name}"
    assert {"report", "rejected", "scores", "metrics", "adapter"} <= seen


def test_every_step_writes_the_artifacts_that_it_declares(first: tuple[int, dict[str, Any], str]) -> None:
    check_artifacts(first[1])


def test_people_are_told_of_a_registered_model_and_of_a_run_that_failed(
    first: tuple[int, dict[str, Any], str], hook: Hook, folder: Path, tiny_model: Path
) -> None:
    message = hook.messages[0]
    assert (message["outcome"], message["model"], message["version"]) == ("registered", "tiny", "1")
    assert (
        message["model_uri"] == "models:/tiny@champion" and message["figures"]["loss"] < message["figures"]["base_loss"]
    )
    assert message["run_id"].startswith(Path(first[1]["folder"]).name)
    left = {path.name for path in (folder / "store" / "runs" / message["run_id"]).iterdir()}
    assert left == {f"{step}.json" for step in placement.STEPS if step != "notify"}
    code, outcome, output = run(folder, tiny_model, margin=0.1, webhook=hook.url, dataset_uri="/no/such/rows.jsonl")
    assert code == 1 and outcome["error"].startswith("plan_run: ") and "/no/such/rows.jsonl" in outcome["error"]
    message = hook.messages[-1]
    assert (message["outcome"], message["step"]) == ("failed", "plan_run")
    assert f"plan_run: {message['reason']}" == outcome["error"]
    assert "verysecret" not in output + first[2] + (Path(outcome["folder"]) / "log.txt").read_text()


@pytest.mark.skipif(not browser.is_installed(), reason="no chromium and chromedriver here")
def test_reports_fit_a_phone_and_a_desktop_light_and_dark(first: tuple[int, dict[str, Any], str]) -> None:
    pages = sorted((Path(str(first[1]["folder"])) / "reports").iterdir())
    with browser.chromium() as driver:
        for page in pages:
            for size, (width, _) in browser.SIZES.items():
                light, dark = (browser.look(driver, page, size, dark) for dark in (False, True))
                assert (light["width"], light["wider"], light["unnamed"]) == (width, [], []), (page.name, size)
                assert light["background"] != dark["background"]


def kept(folder: Path) -> dict[str, bytes]:
    """The manifest of all finished work in the store."""
    return {str(path): path.read_bytes() for path in sorted((folder / "store").rglob("manifest.json"))}


def test_the_same_run_again_does_nothing_again_and_ends_the_same(
    first: tuple[int, dict[str, Any], str], hook: Hook, folder: Path, tiny_model: Path
) -> None:
    before = kept(folder)
    code, outcome, output = run(folder, tiny_model, margin=0.1, webhook=hook.url)
    assert code == 0
    for what in ("prepared", "adapters", "evaluations", "merged"):
        assert f"finished already: {folder}/store/{what}/" in output
    for step in ("prepare-data", "evaluate-tuned", "evaluate-merged"):
        assert f"{step:<20}  finished already: " in output
    assert "this training is finished already" in output and "merged already" in output
    assert "loading the" not in output and "scoring" not in output and "reading /" not in output, "no model, no data"
    assert "Registered models:/tiny@champion (version 1)" in output
    assert kept(folder) == before
    check_artifacts(outcome)
    # What a cached step of Kubeflow would get is the same, though the first run made its model champion.
    assert outcome["results"] == first[1]["results"]
    for name in ("2-data.html", "4-tuned.html", "5-merged.html"):
        again, page = (Path(each["folder"]) / "reports" / name for each in (outcome, first[1]))
        assert again.read_bytes() == page.read_bytes()


def test_a_run_that_fails_the_gate_ends_without_error_and_unregistered(
    first: tuple[int, dict[str, Any], str], hook: Hook, folder: Path, tiny_model: Path
) -> None:
    code, outcome, output = run(folder, tiny_model, margin=100, webhook=hook.url)
    assert code == 3
    assert hook.messages[-1]["outcome"] == "rejected"
    assert hook.messages[-1]["reason"] == outcome["results"]["evaluate-model"]["reason"]
    assert "Not registered: rejected by the gate.\nFailed: the tuned loss is" in output
    assert "register-model" not in outcome["results"] and outcome["error"] == ""
    assert "loading the base" in output, "another margin is another question"
    code, again, output = run(folder, tiny_model, margin=100, webhook=hook.url)
    assert code == 3 and "loading the base" not in output
    assert again["results"] == outcome["results"]


def test_a_run_whose_answers_were_mixed_up_ends_unregistered_with_the_reason_in_its_report(
    folder: Path, tiny_model: Path
) -> None:
    pairs = [(first, last) for first in WORDS for last in WORDS]
    mixed = random.Random(0).sample([last for _, last in pairs[:80]], 80)
    rows = [
        conversation(f"the {first} sat on {last}", answer)
        for (first, last), answer in zip(pairs[:80], mixed, strict=True)
    ]
    held_out = [conversation(f"the {first} sat on {last}", last) for first, last in pairs[80:]]
    code, outcome, output = run(
        folder,
        tiny_model,
        margin=0.1,
        model_name="mixed",
        dataset_uri=str(write_jsonl(folder / "mixed.jsonl", rows)),
        eval_dataset_uri=str(write_jsonl(folder / "held_out.jsonl", held_out)),
    )
    assert code == 3, output
    assert "Not registered: rejected by the gate.\nFailed: the tuned model does not read the question" in output
    report = Path(str(outcome["folder"])) / "reports" / "4-tuned.html"
    assert "Failed: the tuned model does not read the question" in report.read_text()
    assert "register-model" not in outcome["results"] and outcome["error"] == ""
