"""The pipeline, its version and the experiment on the server: found, or created where there is none."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from kfp_server_api import V2beta1Experiment, V2beta1Pipeline

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api.client import BadRequest, Conflict, NotFound, Server, filter_by


class Version(NamedTuple):
    """A version of a pipeline on the server; `uploaded`: it was not there before."""

    pipeline_id: str
    version_id: str
    name: str
    uploaded: bool


def ensure(server: Server, pipeline: Compiled) -> Version:
    """The version with this content, uploaded if there is none.

    Raises:
        InputError: the server does not accept it.
    """
    pipeline_id = _pipeline(server, pipeline)
    name = pipeline.version

    def find() -> str:
        list_versions, wanted = (
            server.pipelines.pipeline_service_list_pipeline_versions,
            filter_by("display_name", name),
        )
        found = server.call(list_versions, pipeline_id, filter=wanted).pipeline_versions
        return str(found[0].pipeline_version_id) if found else ""

    def upload() -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.yaml"
            path.write_text(pipeline.text)
            # It may be called twice: names are unique.
            made = server.call(server.uploads.upload_pipeline_version, str(path), name=name, pipelineid=pipeline_id)
            return str(made.pipeline_version_id)

    try:
        version_id, uploaded = _find_or_create(server, f"version {name}", find, upload)
    except BadRequest as error:
        raise InputError(
            f"{error}; the pipeline was compiled by {pipeline.spec.get('sdkVersion', 'another version')}, an older"
            " server may not know all that is in it: upgrade Kubeflow Pipelines to 2.17 or newer"
        ) from None
    return Version(pipeline_id, version_id, name, uploaded)


def _pipeline(server: Server, pipeline: Compiled) -> str:
    api, namespace = server.pipelines, server.namespace

    def find() -> str:
        try:
            found = server.call(api.pipeline_service_get_pipeline_by_name, pipeline.name, namespace=namespace)
        except NotFound:
            return ""
        return str(found.pipeline_id)

    def create() -> str:
        description = pipeline.spec["pipelineInfo"].get("description", "")
        body = V2beta1Pipeline(display_name=pipeline.name, description=description, namespace=namespace)
        return str(server.call(api.pipeline_service_create_pipeline, body).pipeline_id)

    return _find_or_create(server, f"pipeline {pipeline.name}", find, create)[0]


def experiment(server: Server, name: str) -> str:
    """The experiment's id, created if there is none.

    Raises:
        InputError: the server does not accept it.
    """
    api, namespace = server.experiments, server.namespace

    def find() -> str:
        wanted = filter_by("display_name", name)
        found = server.call(api.experiment_service_list_experiments, namespace=namespace, filter=wanted).experiments
        return str(found[0].experiment_id) if found else ""

    def create() -> str:
        body = V2beta1Experiment(display_name=name, namespace=namespace)
        return str(server.call(api.experiment_service_create_experiment, body).experiment_id)

    return _find_or_create(server, f"experiment {name}", find, create)[0]


def _find_or_create(server: Server, what: str, find: Callable[[], str], create: Callable[[], str]) -> tuple[str, bool]:
    """An id, and whether it was created here."""
    for _ in range(2):
        if found := find():
            return found, False
        try:
            return create(), True
        except Conflict:
            continue  # another client created it meanwhile, or the answer to our first call was lost
    raise InputError(f"{server.address} says that {what} exists, but does not list it; try again")
