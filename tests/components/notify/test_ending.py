"""What became of a run, whatever its steps left and whatever Kubeflow says."""

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.store import outcomes, storage
from qlora_pipelines.components.core.store import outputs as kept
from qlora_pipelines.components.notify import ending
from qlora_pipelines.components.notify.ending import Ending
from tests.components.notify.conftest import RUN, Left

NO = {"passed": False, "reason": "Failed: the tuned loss is 2.", "loss": 2.0, "reference_loss": 1.5,
      "exact_match": -1.0, "reference_exact_match": -1.0}  # fmt: skip
YES = NO | {"passed": True, "reason": "Passed."}
STATES = ["RUNNING", "COMPLETE", "SUCCEEDED", "FAILED", "Succeeded", "Failed", "", "UNKNOWN"]


def found(state: str = "RUNNING", failures: str = "") -> Ending:
    return ending.find(outcomes.read(RUN), state, failures)


def keep(key: str, name: str, verdict: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report").write_text("page")
    kept.keep(storage.join(storage.root(), "evaluations", key, name), {"report": str(tmp_path / "report")}, verdict)


@pytest.mark.parametrize("state", STATES)
def test_a_registration_that_is_done_is_the_outcome(left: Left, state: str) -> None:
    left("plan_run", training_key="t", merge_key="m")
    left("evaluate_model", **YES)
    figures = {"base_loss": "1.51", "loss": "0.5", "base_exact_match": "-1.0", "exact_match": "0.75"}
    left("register_model", model_version="3", model_uri="models:/n@champion", outcome="champion", figures=figures,
         page="https://mlflow/#/models/n/versions/3")  # fmt: skip
    assert found(state) == Ending(
        "registered", "version 3 is registered, champion", version="3", model_uri="models:/n@champion",
        page="https://mlflow/#/models/n/versions/3", figures={"base_loss": 1.51, "loss": 0.5, "exact_match": 0.75},
    )  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_a_step_that_failed_is_the_outcome_with_its_line(left: Left, state: str) -> None:
    left("plan_run", "base_model m: there is no such folder")
    assert found(state) == Ending("failed", "base_model m: there is no such folder", "plan_run")


@pytest.mark.parametrize("state", STATES)
def test_the_gate_said_no_whatever_kubeflow_says(left: Left, state: str) -> None:
    left("plan_run", training_key="t", merge_key="m")
    left("evaluate_model", model="adapter", **NO)
    figures = {"base_loss": 1.5, "loss": 2.0}
    assert found(state) == Ending("rejected", "Failed: the tuned loss is 2.", figures=figures)
    left("evaluate_model", model="merged model", **NO)
    assert found(state).figures == {"adapter_loss": 1.5, "loss": 2.0}


def test_a_step_that_passed_at_its_second_try_did_not_fail(left: Left) -> None:
    left("train_qlora", "the store does not answer")
    left("train_qlora")
    left("evaluate_model", **NO)
    assert found("FAILED").outcome == "rejected"


@pytest.mark.parametrize("state", STATES)
def test_a_step_that_was_killed_is_named(left: Left, state: str) -> None:
    left("evaluate_model", **YES)
    left("dequantize_and_merge", stopped=True)
    reason = "dequantize_and_merge was stopped before it could say why: cancelled, killed, or out of time"
    assert found(state) == Ending("failed", reason, "dequantize_and_merge")


def test_argo_says_what_killed_it(left: Left) -> None:
    nodes = [
        {"displayName": "pipeline", "message": "", "templateName": "pipeline"},
        {"displayName": "train-qlora(0)", "message": "OOMKilled (exit code 137)", "templateName": "train-qlora"},
    ]
    failures = json.dumps(json.dumps(nodes))  # as Argo writes it
    left("train_qlora", stopped=True)
    assert found("Failed", failures).reason.endswith("say why: train-qlora(0): OOMKilled (exit code 137)")
    assert ending.find({}, "Failed", failures).reason == "train-qlora(0): OOMKilled (exit code 137)"
    for nonsense in ("null", '"null"', "{", "[1]", "{{workflow.failures}}"):
        assert ending.find({}, "Failed", nonsense).outcome == "failed"


def test_a_run_that_somebody_stopped_is_cancelled(left: Left) -> None:
    assert found("CANCELED") == Ending("cancelled", "cancelled")
    left("train_qlora", stopped=True)
    assert found("CANCELED") == Ending("cancelled", "cancelled during train_qlora", "train_qlora")
    node = {"displayName": "train-qlora", "message": "workflow shutdown with strategy:  Stop"}
    assert found("Failed", json.dumps([node])).outcome == "cancelled"


def test_a_failure_without_a_word_says_so() -> None:
    assert found("FAILED").reason == "no step said why; it may have been killed, or its pod never started"
    assert found("RUNNING").outcome == found("COMPLETE").outcome == "unknown", "it may have registered"


def test_a_step_that_never_started_leaves_a_failure(left: Left) -> None:
    left("plan_run", training_key="t", merge_key="m")
    assert found("RUNNING") == Ending("failed", "nothing was registered, and no step said why")


@pytest.mark.parametrize("state", ["RUNNING", "COMPLETE", "SUCCEEDED"])
def test_a_verdict_from_kubeflows_cache_is_found_in_the_store(left: Left, state: str, tmp_path: Path) -> None:
    left("plan_run", training_key="t", merge_key="m")
    left("stage_base_model")
    keep("t", "first", NO, tmp_path)
    said = "Failed: the tuned loss is 2. (judged in an earlier run)"
    assert found(state) == Ending("rejected", said, figures={"base_loss": 1.5, "loss": 2.0})
    keep("m", "first", NO | {"reason": "Failed: the merged loss is 3."}, tmp_path)
    assert found(state).reason == "Failed: the merged loss is 3. (judged in an earlier run)"
    assert found(state).figures == {"adapter_loss": 1.5, "loss": 2.0}


def test_an_earlier_verdict_that_was_yes_says_nothing(left: Left, tmp_path: Path) -> None:
    left("plan_run", training_key="t", merge_key="m")
    keep("t", "first", YES, tmp_path)
    assert found("RUNNING").outcome == "failed"
    assert found("COMPLETE") == Ending("rejected", "the gate said no, by a verdict of an earlier run")


def test_a_damaged_outcome_does_no_harm(left: Left) -> None:
    left("register_model", figures={"loss": "low", "exact_match": None, "base_loss": float("inf")})
    assert found().figures == {} and found().outcome == "registered"
