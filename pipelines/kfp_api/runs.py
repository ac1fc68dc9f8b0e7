"""A run on the server: created once, even where the answer to its creation is lost, and found again."""

import contextlib
import dataclasses
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import pipeline_versions
from qlora_pipelines.pipelines.kfp_api.client import BadRequest, NoAnswer, NotFound, Server, filter_by

LIST_DELAY = 2.0
"""Seconds after which a new run is in the server's list."""

FINAL_STATES = {"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"}
"""States of a run, and of a step, after which no other follows."""


@dataclasses.dataclass(frozen=True)
class RunRequest:
    """What a run is started with.

    `name` must be unique: a run is found by it where no answer came. `mlflow_experiment` is where KFP's MLflow plugin
    shows the run, if it is on; a server without it ignores it.
    """

    pipeline: Compiled
    parameters: dict[str, Any]
    name: str
    experiment: str
    mlflow_experiment: str
    service_account: str = ""
    description: str = ""


def unique_name(model_name: str, suffix: str = "") -> str:
    """A display name that no other run has, with the start of a long model name: the server takes 255 characters."""
    parts = [model_name[:150], f"{datetime.now(UTC):%Y%m%d-%H%M%S}", secrets.token_hex(4), suffix]
    return "-".join(part for part in parts if part)


def start(server: Server, request: RunRequest) -> tuple[V2beta1Run, pipeline_versions.Version]:
    """Creates the run, and before it the version of the pipeline and the experiment where there are none.

    Raises:
        InputError: the server does not accept it; then there is no run.
    """
    version = pipeline_versions.ensure(server, request.pipeline)
    try:
        return _create(server, request, version), version
    except NotFound:  # somebody deleted the version meanwhile
        version = pipeline_versions.ensure(server, request.pipeline)._replace(uploaded=True)
        return _create(server, request, version), version


def _create(server: Server, request: RunRequest, version: pipeline_versions.Version) -> V2beta1Run:
    body = V2beta1Run(
        display_name=request.name,
        description=request.description,
        experiment_id=pipeline_versions.experiment(server, request.experiment),
        pipeline_version_reference=V2beta1PipelineVersionReference(version.pipeline_id, version.version_id),
        runtime_config=V2beta1RuntimeConfig(parameters=request.parameters),
        service_account=request.service_account or None,
        plugins_input={"mlflow": {"experiment_name": request.mlflow_experiment}},
    )
    deadline = time.monotonic() + server.retry_timeout
    while True:
        try:
            return server.call_once(server.runs.run_service_create_run, body)
        except BadRequest as error:
            if body.plugins_input is None or "plugins" not in str(error).lower():
                raise
            body.plugins_input = None  # a server from before plugins
        except NoAnswer:
            # The run may exist all the same. Another call at once would create a second one.
            time.sleep(LIST_DELAY)
            if found := list_runs(server, filter_by("display_name", request.name)):
                return found[0]
            if time.monotonic() > deadline:
                raise


def list_runs(server: Server, wanted: str) -> list[V2beta1Run]:
    """All runs of the namespace that match a filter, archived ones too, the earliest first.

    Raises:
        InputError: the server does not list them.
    """
    found: list[V2beta1Run] = []
    token = ""
    while True:
        page = server.call(
            server.runs.run_service_list_runs,
            namespace=server.namespace,
            page_size=100,
            page_token=token,
            sort_by="created_at asc",
            filter=wanted,
        )
        found += page.runs or []
        token = page.next_page_token or ""
        if not token:
            return found


def terminate(server: Server, run_id: str) -> None:
    """Ends a run; one that is gone or has ended already is not an error."""
    with contextlib.suppress(NotFound, BadRequest):
        server.call(server.runs.run_service_terminate_run, run_id)


def state(run: V2beta1Run) -> str:
    """A run's state, or '' where it has none yet. A terminated run is FAILED for Argo; here it is CANCELED."""
    terminated = any(status.state in ("CANCELING", "CANCELED") for status in run.state_history or [])
    return "CANCELED" if terminated and run.state == "FAILED" else run.state or ""


def parameters(run: V2beta1Run) -> dict[str, Any]:
    """What a run was started with."""
    return (run.runtime_config.parameters if run.runtime_config else None) or {}
