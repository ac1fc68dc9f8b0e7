"""`qlora gc`: frees the store of what no registered version needs."""

import dataclasses
import json
import os

import click

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage, transfer
from qlora_pipelines.pipelines.local import workspace
from qlora_pipelines.pipelines.registry import garbage


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option("--days", default=7.0, show_default=True, type=click.FloatRange(min=0),
              help="Keep what was written since: a run may be at work on it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON; sizes in bytes.")
def gc(dry_run: bool, days: float, as_json: bool) -> None:
    r"""Remove from $QLORA_STORE what no version in $MLFLOW_TRACKING_URI refers to.

    Checkpoints go once their training is registered; merged models, listings and staged bases when no version refers to
    them. Use a login that sees every model: what it does not see counts as not there.

    \b
    Example:
      qlora gc --dry-run
    """
    workspace.use_existing()
    store, models = storage.root().rstrip("/"), os.environ.get(transfer.MODELS_VARIABLE, "").rstrip("/")
    refer = garbage.references(mlflow_client.client())
    if not dry_run:
        garbage.check_registry(store, refer)
    pieces = garbage.in_store(store, refer, days)
    if not dry_run:
        garbage.remove(pieces)
    if models:
        transfer.use_endpoint(transfer.models_endpoint())
        others = garbage.in_models_store(models, refer, days)
        if not dry_run:
            garbage.remove(others)
        pieces += others
    click.echo(_json(pieces, dry_run) if as_json else _text(pieces, dry_run))


def _json(pieces: list[garbage.Piece], dry_run: bool) -> str:
    return json.dumps({"removed": not dry_run, "pieces": [dataclasses.asdict(piece) for piece in pieces]})


def _text(pieces: list[garbage.Piece], dry_run: bool) -> str:
    lines = [
        f"{piece.kind:<11} {piece.size / 1e9:>9.3f} GB {piece.days:>6.1f} days  {piece.uri}: {piece.why}"
        for piece in pieces
    ]
    verb = "would go" if dry_run else "removed"
    return "\n".join([*lines, f"{len(pieces)} pieces, {sum(piece.size for piece in pieces) / 1e9:.3f} GB, {verb}"])
