"""`qlora promote` and `qlora rollback`: the champion moved by hand."""

import json
from typing import Any

import click

from qlora_pipelines.components.core.registry import manifest, mlflow_client, versions
from qlora_pipelines.components.core.store import transfer
from qlora_pipelines.pipelines.local import workspace


@click.command("promote")
@click.argument("uri", metavar="models:/NAME/VERSION")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def promote(uri: str, as_json: bool) -> None:
    r"""Make a version the champion; the former one keeps the alias previous.

    \b
    Example:
      qlora promote models:/ticket-parser/3
      qlora promote models:/ticket-parser@candidate
    """
    workspace.use_existing()
    client = mlflow_client.client(with_store=False)
    version = versions.resolve(client, uri)
    _check_whole(version)
    _move(client, version.name, str(version.version), as_json)


@click.command("rollback")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def rollback(name: str, as_json: bool) -> None:
    r"""Make the version with the alias previous the champion again; the two change places.

    \b
    Example:
      qlora rollback ticket-parser
    """
    workspace.use_existing()
    client = mlflow_client.client(with_store=False)
    version = versions.resolve(client, f"models:/{name}@{versions.PREVIOUS}")
    _check_whole(version)
    _move(client, name, str(version.version), as_json)


def _check_whole(version: Any) -> None:
    """Refuses a version that nobody could load; what others registered is taken as it is."""
    if versions.KEY_TAG in version.tags:
        transfer.use_endpoint(transfer.models_endpoint())
        manifest.of_version(version)


def _move(client: Any, name: str, number: str, as_json: bool) -> None:
    former = mlflow_client.champion(client, name)
    with versions.explained(f"moving the champion of {name}", mend="run again"):
        versions.move_champion(client, name, number, former)
    was = "" if not former else ", as before" if former == number else f", it was version {former}"
    moved = {"name": name, "champion": number, "was": former}
    click.echo(json.dumps(moved) if as_json else f"models:/{name}@champion is version {number}{was}")
