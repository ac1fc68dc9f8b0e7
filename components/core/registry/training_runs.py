"""A training's run in MLflow: by which tags it is found, and how it ends where the training could not end it."""

import contextlib
import os
from typing import Any

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import outcomes

EXPERIMENT = "qlora-training"
KEY_TAG, RUN_TAG = "qlora.training_key", "qlora.run_id"
"""The training that a run belongs to, and the pipeline's run that trains now or was the last to do so."""
INJECTED = "MLFLOW_RUN_ID"
"""Set by Kubeflow Pipelines' MLflow plugin: the run that this step belongs to. Who set it ends it."""
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
"""MLflow's words."""


def status(error: type[BaseException] | None) -> str:
    """A run's status in MLflow, by the error that ended it; an interrupt, or SIGTERM, is no failure."""
    if error is None:
        return FINISHED
    return FAILED if issubclass(error, Exception) else KILLED


def tags(training_key: str) -> dict[str, str]:
    """The tags of the MLflow run that this process trains in."""
    run_id = outcomes.run_id()
    return {KEY_TAG: training_key} | ({RUN_TAG: run_id} if run_id else {})


def find(client: Any, tag: str, value: str) -> list[Any]:
    """The MLflow runs of trainings that have this tag, the newest first.

    Args:
        client: of MLflow.
        tag: one of those above.
        value: a key, or a run's id.
    """
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or "'" in value:
        return []
    return list(client.search_runs([experiment.experiment_id], f"tags.`{tag}` = '{value}'"))


def end(tag: str, value: str, ended: str) -> int:
    """Ends the MLflow runs that are still RUNNING, of a training whose processes could not do so themselves.

    Without an MLflow nothing is done; where it fails nothing is raised, because how the run ended counts more.

    Args:
        tag: one of those above.
        value: a key, or a run's id.
        ended: the status they get.

    Returns:
        How many there were.
    """
    count = 0
    if os.environ.get(mlflow_client.URI_VARIABLE) and not os.environ.get(INJECTED):
        with contextlib.suppress(Exception):
            client = mlflow_client.connect(with_store=False)
            for run in find(client, tag, value):
                if run.info.status == RUNNING:
                    client.set_terminated(run.info.run_id, ended)
                    count += 1
    return count
