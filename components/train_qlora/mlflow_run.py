"""The training as a run in MLflow, where it can be watched."""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any, Self

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.registry import mlflow_client, training_runs
from qlora_pipelines.components.core.registry.training_runs import EXPERIMENT, INJECTED, KEY_TAG
from qlora_pipelines.components.core.runtime import log


class MlflowRun:
    """The injected run, or the one of this training_key, or a new one; at the end of the block it is ended.

    Training does not depend on MLflow: where MLflow fails, one line says so and nothing more is sent.
    """

    def __init__(self, training_key: str, params: dict[str, Any], muted: bool = False) -> None:
        """Finds or starts the run.

        Args:
            training_key: names the training; a resumed one continues its run.
            params: shown with the run.
            muted: send nothing, because another process of this training does.
        """
        self._client: Any = None
        self._run = ""
        if os.environ.get(mlflow_client.URI_VARIABLE) and not muted:
            with self._sending():
                self._client = mlflow_client.connect()
                self._run = os.environ.get(INJECTED) or self._own(training_key, params)

    def _own(self, training_key: str, params: dict[str, Any]) -> str:
        tags = training_runs.tags(training_key)
        if known := training_runs.find(self._client, KEY_TAG, training_key):
            run_id = str(known[0].info.run_id)
            for name, value in tags.items():
                self._client.set_tag(run_id, name, value)
            self._client.update_run(run_id, status=training_runs.RUNNING)
            return run_id
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        run = self._client.create_run(experiment_id, tags=tags, run_name=training_key[:12])
        for name, value in params.items():
            self._client.log_param(run.info.run_id, name, value)
        return str(run.info.run_id)

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Sends the figures of one step."""
        if self._client:
            from mlflow.entities import Metric

            now = int(time.time() * 1000)
            metrics = [Metric(name, value, now, step) for name, value in figures.items()]
            with self._sending():
                self._client.log_batch(self._run, metrics=metrics)

    def __enter__(self) -> Self:
        """The run itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Sets the run's status; an injected run goes on, since other steps may write to it."""
        if self._client and not os.environ.get(INJECTED):
            with self._sending():
                self._client.set_terminated(self._run, training_runs.status(kind))

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # MLflow raises its own, SQLAlchemy's, requests'...
            said = str(error) if isinstance(error, InputError) else f"MLflow: {mlflow_client.reason(error)}"
            log(f"{said}; the training goes on without it")
            self._client = None


def end(training_key: str, error: BaseException) -> None:
    """Ends the run of a training whose processes were killed, and could not end it themselves.

    Any other InputError is an end of theirs, in which they did so: then MLflow, which may be away, is not asked again.
    """
    if isinstance(error, TransientError) or not isinstance(error, InputError):
        training_runs.end(KEY_TAG, training_key, training_runs.status(type(error)))
