"""The MLflow run behind a version: the data as its inputs, the gates' figures, every step's report."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import versions
from qlora_pipelines.components.core.store import storage
from qlora_pipelines.components.register_model import model_card

RUN_VARIABLE = "MLFLOW_RUN_ID"
"""A run that is there already and is joined (Kubeflow Pipelines' MLflow plugin sets it)."""
COMMIT_VARIABLE = "QLORA_GIT_COMMIT"
"""Set in the images; elsewhere the checkout is asked."""
NAME_TAG = "qlora.model_name"
REPORTS_TAG = "qlora.reports"
"""Where MLflow keeps the steps' reports: `mlflow.artifacts.download_artifacts` takes it."""
DIGEST_DIGITS = 36
"""As many as MLflow keeps of a data set's digest; the whole one is a tag."""


def tags(merge_key: str, champion_version: str, evidence: dict[str, str]) -> dict[str, str]:
    """What a version is created with; what is not known is left out, nothing is empty."""
    known = {**evidence, "version": version("qlora-pipelines"), "git_commit": git_commit()}
    said = {f"qlora.{name}": value for name, value in sorted(known.items()) if value}
    return said | {
        versions.KEY_TAG: merge_key,
        versions.OUTCOME_TAG: versions.PENDING,
        "qlora.compared_with": champion_version or "no champion",
    }


def git_commit() -> str:
    """The commit of the code at work, with `-dirty` where files differ from it; '' where that is not known."""
    if given := os.environ.get(COMMIT_VARIABLE):
        return given
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        asked = subprocess.run(describe, cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def find_or_start_run(client: Any, name: str, merge_key: str) -> str:
    """The id of the run that registers this: the one given by the environment, an earlier attempt's, or a new one."""
    if joined := os.environ.get(RUN_VARIABLE):
        return joined
    experiment = _experiment(client, name)
    runs = _runs(client, experiment, name, merge_key)
    if runs:
        return str(runs[0].info.run_id)
    run = client.create_run(
        experiment, tags={versions.KEY_TAG: merge_key, NAME_TAG: name}, run_name=f"{name}-{merge_key[:8]}"
    )
    return str(run.info.run_id)


def remove_other_runs(client: Any, name: str, merge_key: str, run_id: str) -> None:
    """Removes what attempts at the same time started in vain."""
    import mlflow

    if RUN_VARIABLE in os.environ:
        return
    for run in _runs(client, _experiment(client, name), name, merge_key):
        if run.info.run_id != run_id:
            try:
                client.delete_run(run.info.run_id)
            except mlflow.MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise


def _experiment(client: Any, name: str) -> str:
    import mlflow

    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    found = client.get_experiment_by_name(name)
    if found is None:
        # A server keeps artifacts where it was told to; a local database would put them into the working folder.
        local = not str(client.tracking_uri).startswith("http")
        place = storage.join(storage.root(), "runs", name) if local else None
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except mlflow.MlflowException as error:
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    return str(found.experiment_id)


def _runs(client: Any, experiment: str, name: str, merge_key: str) -> list[Any]:
    search = f"tags.`{versions.KEY_TAG}` = '{merge_key}' and tags.`{NAME_TAG}` = '{name}'"
    found = client.search_runs([experiment], search, max_results=1000)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def said(version: Any) -> dict[str, str]:
    """What a version's tags say of its making, without their prefix."""
    prefix = "qlora."
    return {name.removeprefix(prefix): value for name, value in version.tags.items() if name.startswith(prefix)}


def log_run(client: Any, version: Any, data: list[Any], reports: dict[str, str]) -> None:
    """Writes data, figures and reports to a version's run, and where they lie to the version; again changes nothing.

    Args:
        client: MLflow's.
        version: the version.
        data: its data sets, as `datasets` gives them.
        reports: path of each step's HTML report, by the name it gets.

    Raises:
        InputError: a report is not there.
    """
    from mlflow.entities import Metric, RunTag

    run_id, known = version.run_id, said(version)
    versions.repeated(client.log_inputs, run_id, datasets=data)
    metrics = [Metric(name, value, version.creation_timestamp, 0) for name, value in model_card.figures(known).items()]
    links = [RunTag(f"qlora.{name}", known[name]) for name in ("training_key", "pipeline_run_id") if known.get(name)]
    versions.repeated(client.log_batch, run_id, metrics=metrics, tags=links)
    for name, path in sorted(reports.items()):
        try:
            client.log_text(run_id, Path(path).read_text(), f"reports/{name}.html")
        except OSError as error:
            raise InputError(f"report {path}: {error.strerror}") from None
    if reports:
        place = f"runs:/{run_id}/reports"
        versions.repeated(client.set_model_version_tag, version.name, version.version, REPORTS_TAG, place)
    if RUN_VARIABLE not in os.environ:
        client.set_terminated(run_id)


def datasets(evidence: dict[str, str]) -> list[Any]:
    """The data that a model was trained and evaluated on, as an MLflow run takes it, from the listing in the store.

    Args:
        evidence: has `listing_uri` and `data_digest`, or neither.

    Raises:
        InputError: the listing is gone.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    address = evidence.get("listing_uri", "")
    listing = json.loads(storage.read_bytes(address)) if address else {}
    found = []
    for side, context in (("train", "training"), ("eval", "evaluation")):
        if side in listing:
            uri = listing[side]["uri"]
            kind = uri.partition("://")[0] if "://" in uri else "local"
            source = json.dumps({"uri": uri, "listing": address})
            data = Dataset(side, evidence.get("data_digest", "")[:DIGEST_DIGITS], kind, source)
            found.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    return found
