"""What a version says of its making: its tags, and an MLflow run with the data, the figures and every step's report."""

import contextlib
import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import versions
from qlora_pipelines.components.core.registry.mlflow_client import retry, suppress
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import model_card

RUN_VARIABLE = "MLFLOW_RUN_ID"
"""A run that exists already and is joined (Kubeflow Pipelines' MLflow plugin sets it)."""
COMMIT_VARIABLE = "QLORA_GIT_COMMIT"
"""Set in the images; elsewhere the checkout is asked."""
NAME_TAG = "qlora.model_name"
REPORTS_TAG = "qlora.reports"
"""Where MLflow keeps the steps' reports: `mlflow.artifacts.download_artifacts` takes it."""
OUTCOME_TAG = "qlora.outcome"
"""`registering` until registration ends, then what became of the version."""
PENDING = "registering"
PREFIX = "qlora."
DIGEST_DIGITS = 36
"""As many as MLflow keeps of a data set's digest; the whole one is a tag."""


def complete(evidence: dict[str, str], adapter: attempts.Finished | None) -> dict[str, str]:
    """The evidence with what follows from it, so that each fact is passed to this step only once.

    Args:
        evidence: by name; what is given here is not derived. `run_config` says the base model and its revision,
            `listing_uri` the data's digest, `tuned_figures` and `merged_figures` losses and the share of right answers.
        adapter: the adapter, whose manifest says what it was trained on; None: none.

    Raises:
        InputError: one of the JSON texts is no object.
    """
    run, tuned, merged = (_json_object(evidence, name) for name in ("run_config", "tuned_figures", "merged_figures"))
    trained = adapter.info if adapter else {}
    derived = {
        "base_model": run.get("base_model"),
        "base_revision": run.get("base_revision"),
        "base_uri": trained.get("base_uri"),
        "data_digest": _data_digest(evidence),
        "dataset_digest": trained.get("dataset_digest"),
        "training_key": trained.get("training_key"),
        "loss": merged.get("loss"),
        "exact_match": merged.get("exact_match"),
        "base_loss": tuned.get("reference_loss"),
        "adapter_uri": adapter and adapter.uri,
    }
    return {name: str(value) for name, value in derived.items() if value not in (None, "")} | evidence


def _data_digest(evidence: dict[str, str]) -> str:
    """As given, or the name of the listing's file (core/data/listing.py)."""
    return evidence.get("data_digest") or PurePosixPath(evidence.get("listing_uri", "")).stem


def _json_object(evidence: dict[str, str], name: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        value = json.loads(evidence.get(name) or "{}")
        if isinstance(value, dict):
            return value
    raise InputError(f"evidence {name}: a JSON object is expected")


def tags(merge_key: str, champion_version: str, evidence: dict[str, str]) -> dict[str, str]:
    """What a version is created with; what is not known is left out, nothing is empty."""
    known = {**evidence, "version": version("qlora-pipelines"), "git_commit": git_commit()}
    return {f"{PREFIX}{name}": value for name, value in sorted(known.items()) if value} | {
        versions.KEY_TAG: merge_key,
        OUTCOME_TAG: PENDING,
        versions.COMPARED_TAG: champion_version or "no champion",
    }


def of_version(version: Any) -> dict[str, str]:
    """The tags of a version that say how it was made, without their prefix."""
    return {name.removeprefix(PREFIX): value for name, value in version.tags.items() if name.startswith(PREFIX)}


def git_commit() -> str:
    """The commit of the running code, with `-dirty` where files differ from it; '' where that is not known."""
    if given := os.environ.get(COMMIT_VARIABLE):
        return given
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.check_output(describe, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    return ""


def find_or_start_run(client: Any, name: str, merge_key: str) -> str:
    """The id of the run that registers this: the one given by the environment, an earlier attempt's, or a new one."""
    if joined := os.environ.get(RUN_VARIABLE):
        return joined
    experiment = _experiment(client, name)
    if runs := _runs(client, experiment, name, merge_key):
        return str(runs[0].info.run_id)
    run_tags = {versions.KEY_TAG: merge_key, NAME_TAG: name}
    return str(client.create_run(experiment, tags=run_tags, run_name=f"{name}-{merge_key[:8]}").info.run_id)


def remove_other_runs(client: Any, name: str, merge_key: str, run_id: str) -> None:
    """Removes what attempts at the same time started in vain."""
    if RUN_VARIABLE in os.environ:
        return
    for run in _runs(client, _experiment(client, name), name, merge_key):
        if run.info.run_id != run_id:
            with suppress("RESOURCE_DOES_NOT_EXIST"):
                client.delete_run(run.info.run_id)


def _experiment(client: Any, name: str) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    if client.get_experiment_by_name(name) is None:
        # A server keeps artifacts where it was told to; a local database would put them into the working folder.
        local = not str(client.tracking_uri).startswith("http")
        location = storage.join(storage.root(), "runs", name) if local else None
        with suppress("RESOURCE_ALREADY_EXISTS"):
            client.create_experiment(name, artifact_location=location)
    return str(client.get_experiment_by_name(name).experiment_id)


def _runs(client: Any, experiment: str, name: str, merge_key: str) -> list[Any]:
    query = f"tags.`{versions.KEY_TAG}` = '{merge_key}' and tags.`{NAME_TAG}` = '{name}'"
    found = client.search_runs([experiment], query, max_results=1000)
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def log_run(client: Any, version: Any, data: list[Any], reports: dict[str, str]) -> None:
    """Writes data, figures and reports to a version's run, and their address to the version; again changes nothing.

    Args:
        client: MLflow's.
        version: the version.
        data: its data sets, as `datasets` gives them.
        reports: path of each step's HTML report, by the name it gets.

    Raises:
        InputError: a report is not there.
    """
    from mlflow.entities import Metric, RunTag

    run_id, known = version.run_id, of_version(version)
    retry(client.log_inputs, run_id, datasets=data)
    metrics = [Metric(name, value, version.creation_timestamp, 0) for name, value in model_card.figures(known).items()]
    links = [RunTag(f"{PREFIX}{name}", known[name]) for name in ("training_key", "pipeline_run_id") if known.get(name)]
    retry(client.log_batch, run_id, metrics=metrics, tags=links)
    for name, path in sorted(reports.items()):
        client.log_text(run_id, storage.read_bytes(path).decode(), f"reports/{name}.html")
    if reports:
        retry(client.set_model_version_tag, version.name, version.version, REPORTS_TAG, f"runs:/{run_id}/reports")
    if RUN_VARIABLE not in os.environ:
        client.set_terminated(run_id)


def datasets(evidence: dict[str, str]) -> list[Any]:
    """The data that a model was trained and evaluated on, as an MLflow run takes it, from the listing in the store.

    Args:
        evidence: has `listing_uri`, or no data is known.

    Raises:
        InputError: the listing is gone.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    listing_uri = evidence.get("listing_uri", "")
    listing = json.loads(storage.read_bytes(listing_uri)) if listing_uri else {}
    found = []
    for side, context in (("train", "training"), ("eval", "evaluation")):
        if side in listing:
            uri = listing[side]["uri"]
            kind = uri.partition("://")[0] if "://" in uri else "local"
            source = json.dumps({"uri": uri, "listing": listing_uri})
            data = Dataset(side, _data_digest(evidence)[:DIGEST_DIGITS], kind, source)
            found.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    return found
