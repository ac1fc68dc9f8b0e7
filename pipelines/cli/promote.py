"""`qlora promote` and `qlora rollback`: the champion moved by hand."""

import json

import click

from qlora_pipelines.components.core.registry import champion, manifest, mlflow_client, versions
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
    _promote(uri, as_json)


@click.command("rollback")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
def rollback(name: str, as_json: bool) -> None:
    r"""Make the version with the alias previous the champion again; the two change places.

    \b
    Example:
      qlora rollback ticket-parser
    """
    _promote(f"models:/{name}@{champion.PREVIOUS}", as_json)


def _promote(uri: str, as_json: bool) -> None:
    workspace.use_existing()
    client = mlflow_client.connect(with_store=False)
    version = versions.resolve(client, uri)
    if versions.KEY_TAG in version.tags:  # what others registered is taken as it is
        manifest.of_version(version)
    name, number = version.name, str(version.version)
    former = champion.current_version(client, name)
    with mlflow_client.mlflow_errors(f"moving the champion of {name}", "run again"):
        champion.move(client, name, number, former)
    was = "" if not former else ", as before" if former == number else f", it was version {former}"
    moved = {"name": name, "champion": number, "was": former}
    click.echo(json.dumps(moved) if as_json else f"models:/{name}@champion is version {number}{was}")
