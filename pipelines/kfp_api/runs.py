"""A run on the server: created once, also where the answer to its creation was lost, and found again."""

import dataclasses
import secrets
import time
from datetime import UTC, datetime
from typing import Any

from kfp_server_api import V2beta1PipelineVersionReference, V2beta1Run, V2beta1RuntimeConfig

from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api import pipeline_versions
from qlora_pipelines.pipelines.kfp_api.client import NoAnswer, NotThere, Refused, Server, equals

SETTLED = 2.0
"""Seconds after which a run that was created is in the server's list."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What a run is started with.

    `name` must be its own: by it the run is found where no answer came. `mlflow_experiment` is where KFP's MLflow
    plugin shows the run, if it is on; a server without it passes it over.
    """

    pipeline: Compiled
    parameters: dict[str, Any]
    name: str
    experiment: str
    mlflow_experiment: str
    service_account: str = ""
    description: str = ""


def unique_name(model_name: str, suffix: str = "") -> str:
    """A display name that no other run has; of a long model name the beginning, for the server takes 255 characters."""
    parts = [model_name[:150], f"{datetime.now(UTC):%Y%m%d-%H%M%S}", secrets.token_hex(4), suffix]
    return "-".join(part for part in parts if part)


def start(server: Server, order: Order) -> tuple[V2beta1Run, pipeline_versions.Version]:
    """Creates the run, and first the version of the pipeline and the experiment where there are none.

    Raises:
        InputError: the server does not take it; then there is no run.
    """
    version = pipeline_versions.ensure(server, order.pipeline)
    try:
        return _create(server, order, version), version
    except NotThere:
        version = pipeline_versions.ensure(server, order.pipeline)._replace(uploaded=True)  # somebody deleted it since
        return _create(server, order, version), version


def _create(server: Server, order: Order, version: pipeline_versions.Version) -> V2beta1Run:
    body = V2beta1Run(
        display_name=order.name,
        description=order.description,
        experiment_id=pipeline_versions.experiment(server, order.experiment),
        pipeline_version_reference=V2beta1PipelineVersionReference(version.pipeline_id, version.version_id),
        runtime_config=V2beta1RuntimeConfig(parameters=order.parameters),
        service_account=order.service_account or None,
        plugins_input={"mlflow": {"experiment_name": order.mlflow_experiment}},
    )
    started = time.monotonic()
    while True:
        try:
            return server.once(server.runs.run_service_create_run, body)
        except Refused as error:
            if body.plugins_input is None or "plugins" not in str(error).lower():
                raise
            body.plugins_input = None  # a server from before plugins
        except NoAnswer:
            # It may have been created all the same; asked again at once, there would be two.
            time.sleep(SETTLED)
            if found := by_name(server, order.name):
                return found[0]
            if time.monotonic() > started + server.patience:
                raise


def by_name(server: Server, name: str) -> list[V2beta1Run]:
    """The runs with this display name, the earliest first."""
    return listed(server, equals("display_name", name))


def listed(server: Server, wanted: str) -> list[V2beta1Run]:
    """All runs of the namespace that a filter passes, archived ones too, the earliest first.

    Raises:
        InputError: the server does not list them.
    """
    found: list[V2beta1Run] = []
    token = ""
    while True:
        page = server.ask(
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


def end(server: Server, run_id: str) -> None:
    """Ends a run; one that is gone or at its end already is no error."""
    try:
        server.ask(server.runs.run_service_terminate_run, run_id)
    except (NotThere, Refused):
        return


def state_of(run: V2beta1Run) -> str:
    """A run's state, or '' where it has none yet. Argo calls a run that was ended a failed one; here it is CANCELED."""
    ended = any(status.state in ("CANCELING", "CANCELED") for status in run.state_history or [])
    return "CANCELED" if ended and run.state == "FAILED" else run.state or ""


def parameters(run: V2beta1Run) -> dict[str, Any]:
    """What a run was started with."""
    return (run.runtime_config.parameters if run.runtime_config else None) or {}
