"""The training as a run in MLflow, to watch it there."""

import os
import time
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.runtime import log

EXPERIMENT = "qlora-training"
KEY_TAG = "qlora.training_key"


class MlflowRun:
    """Joins the run that Kubeflow Pipelines injected, or the one of this training_key, or starts one.

    Training does not stop for MLflow: where it does not answer that is said once, and nothing more is sent.
    """

    def __init__(self, training_key: str, params: dict[str, Any], muted: bool = False) -> None:
        """Finds or starts the run.

        Args:
            training_key: names the training; a resumed one goes on in its run.
            params: shown with the run.
            muted: sends nothing: another process of this training does.
        """
        self._client: Any = None
        self._run = ""
        if muted or not os.environ.get(mlflow_client.URI_VARIABLE):
            return
        try:
            self._client = mlflow_client.connect()
            self._run = os.environ.get("MLFLOW_RUN_ID") or self._own(training_key, params)
        except Exception as error:  # MLflow raises its own, sqlalchemy's, requests'...
            self._give_up(error)

    def _own(self, training_key: str, params: dict[str, Any]) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        known = self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{training_key}'", max_results=1)
        if known:
            self._client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        run = self._client.create_run(experiment_id, tags={KEY_TAG: training_key}, run_name=training_key[:12])
        for name, value in params.items():
            self._client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Sends the figures of one step."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        try:
            self._client.log_batch(
                self._run, metrics=[Metric(name, value, now, step) for name, value in figures.items()]
            )
        except Exception as error:
            self._give_up(error)

    def end(self, finished: bool) -> None:
        """Says how it ended; an injected run goes on."""
        if self._client is not None and not os.environ.get("MLFLOW_RUN_ID"):
            try:
                self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        said = str(error) if isinstance(error, InputError) else f"MLflow: {mlflow_client.reason(error)}"
        log(f"{said}; the training goes on without it")
        self._client = None
