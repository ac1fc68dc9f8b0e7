"""A training that was stopped before it could tell MLflow, against a real MLflow database."""

from pathlib import Path

import mlflow
import pytest

from qlora_pipelines.components.core.config.steps import NotifyConfig
from qlora_pipelines.components.core.registry import training_runs
from qlora_pipelines.components.core.store import outcomes
from qlora_pipelines.components.notify import task
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun
from tests.components.notify.conftest import RUN, Left

OTHER = "5f0e7f0a-0000-4000-8000-000000000002"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv(training_runs.INJECTED, raising=False)
    return mlflow.MlflowClient(uri, uri)


def test_its_run_is_ended_as_killed_and_no_other(
    client: mlflow.MlflowClient, left: Left, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(outcomes.RUN_VARIABLE, OTHER)
    others = MlflowRun("of another pipeline's run", {})._run
    taken_up = MlflowRun("stopped, and taken up by another run since", {})._run
    monkeypatch.setenv(outcomes.RUN_VARIABLE, RUN)
    assert MlflowRun("stopped, and taken up by another run since", {})._run == taken_up
    stopped = MlflowRun("stopped", {})._run
    monkeypatch.setenv(outcomes.RUN_VARIABLE, OTHER)
    MlflowRun("stopped, and taken up by another run since", {})
    monkeypatch.setenv(outcomes.RUN_VARIABLE, RUN)
    left("train_qlora", stopped=True)

    task.run(NotifyConfig())
    assert [client.get_run(run).info.status for run in (others, taken_up, stopped)] == ["RUNNING", "RUNNING", "KILLED"]
    assert "its run in MLflow is ended as KILLED" in capsys.readouterr().out


@pytest.mark.parametrize("error", ["", "the loss is NaN at step 3"])
def test_one_that_ended_by_itself_is_left(client: mlflow.MlflowClient, left: Left, error: str) -> None:
    run = MlflowRun("key", {})._run  # this training could not reach MLflow at its end
    left("train_qlora", error)
    task.run(NotifyConfig())
    assert client.get_run(run).info.status == "RUNNING"


def test_an_mlflow_that_is_away_fails_no_run(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    left("train_qlora", stopped=True)
    assert task.run(NotifyConfig()) == ("", False)
