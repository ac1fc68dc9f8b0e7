"""A pipeline's version on the server, uploaded only if its content is new there."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from kfp_server_api import V2beta1Experiment, V2beta1Pipeline

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.pipelines.compiler.compiled import Compiled
from qlora_pipelines.pipelines.kfp_api.client import Conflict, NotThere, Refused, Server, equals


class Version(NamedTuple):
    """A version of a pipeline on the server; `uploaded`: it was not there before."""

    pipeline_id: str
    version_id: str
    name: str
    uploaded: bool


def ensure(server: Server, pipeline: Compiled) -> Version:
    """The version with this content, uploaded if there is none.

    Raises:
        InputError: the server does not take it.
    """
    pipeline_id = _pipeline(server, pipeline)
    name = pipeline.version
    found = _find(server, pipeline_id, name)
    if found:
        return Version(pipeline_id, found, name, uploaded=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(pipeline.text)
        try:
            # Two of one name cannot be made, so asking again does no harm.
            made = server.ask(server.uploads.upload_pipeline_version, str(path), name=name, pipelineid=pipeline_id)
            return Version(pipeline_id, made.pipeline_version_id, name, uploaded=True)
        except Conflict:
            pass  # another one uploaded it at this moment, or the answer to the first try was lost
        except Refused as error:
            raise InputError(
                f"{error}; the pipeline was compiled by {pipeline.spec.get('sdkVersion', 'another version')}, an older"
                " server may not know all that is in it: upgrade Kubeflow Pipelines to 2.17 or newer"
            ) from None
    found = _find(server, pipeline_id, name)
    if not found:
        raise InputError(f"{server.address} says that version {name} is there, and does not list it; try again")
    return Version(pipeline_id, found, name, uploaded=False)


def _pipeline(server: Server, pipeline: Compiled) -> str:
    """The pipeline's id, created if there is none."""
    api, namespace = server.pipelines, server.namespace
    for _ in range(2):
        try:
            found = server.ask(api.pipeline_service_get_pipeline_by_name, pipeline.name, namespace=namespace)
            return str(found.pipeline_id)
        except NotThere:
            pass
        body = V2beta1Pipeline(
            display_name=pipeline.name,
            description=pipeline.spec["pipelineInfo"].get("description", ""),
            namespace=namespace,
        )
        try:
            return str(server.ask(api.pipeline_service_create_pipeline, body).pipeline_id)
        except Conflict:
            continue  # another one created it since
    raise InputError(f"{server.address} says that pipeline {pipeline.name} is there, and does not find it; try again")


def _find(server: Server, pipeline_id: str, name: str) -> str:
    listed = server.ask(
        server.pipelines.pipeline_service_list_pipeline_versions, pipeline_id, filter=equals("display_name", name)
    )
    return str(listed.pipeline_versions[0].pipeline_version_id) if listed.pipeline_versions else ""


def experiment(server: Server, name: str) -> str:
    """The experiment's id, created if there is none.

    Raises:
        InputError: the server does not give it.
    """
    api = server.experiments
    for _ in range(2):
        listed = server.ask(
            api.experiment_service_list_experiments, namespace=server.namespace, filter=equals("display_name", name)
        )
        if listed.experiments:
            return str(listed.experiments[0].experiment_id)
        try:
            body = V2beta1Experiment(display_name=name, namespace=server.namespace)
            return str(server.ask(api.experiment_service_create_experiment, body).experiment_id)
        except Conflict:
            continue  # another one created it since
    raise InputError(f"{server.address} says that experiment {name} is there, and does not list it; try again")
