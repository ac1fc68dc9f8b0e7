"""`qlora gc`: frees the store of what no registered version needs.

    checkpoints/<training_key>/   go when their training is registered and its adapter is in the store
    merged/<key>/<attempt>/       go when it is no version's source
    evaluations/<key>/            go when no version has that training_key or merge_key
    prepared/<data_key>/          go when no run used them lately
    listings/<data_digest>.json   go when no version was trained on that data
    bases/<name>/<revision>/      go when no version was trained on that base
    claims/<training_key>/        go when their runs are long past plan_run
    runs/<run id>/                go when --days old: how the steps ended, for the notification at the run's end
    <merge_key>/                  the same in the store of registered models, where there is one

Each of them but runs/ only if the records in the store name it for this registry, and for no other (unused.py).
Adapters, tokenizers and checksums stay: they are small, and a finished training is found by its adapter.
"""

import dataclasses
import json

import click

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import models_store, storage
from qlora_pipelines.pipelines.cli import unused
from qlora_pipelines.pipelines.local import workspace


@dataclasses.dataclass(frozen=True)
class Found:
    """A piece of work that no version needs: whether it was or would be removed, and why not."""

    piece: unused.Piece
    kept: str


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option("--days", default=7.0, show_default=True, type=click.FloatRange(min=0),
              help="Keep what was written or used since, except checkpoints of a registered training.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON; sizes in bytes.")
def gc(dry_run: bool, days: float, as_json: bool) -> None:
    r"""Remove from $QLORA_STORE what no version in $MLFLOW_TRACKING_URI refers to.

    Checkpoints go once their training is registered; merged models, evaluations, listings and staged bases when no
    version refers to them; prepared data when no run used it lately; how steps ended when that is old. What another
    registry refers to stays, and so does what no record names; gc says so.

    \b
    Example:
      qlora gc --dry-run
    """
    workspace.use_existing()
    registry = unused.Registry(mlflow_client.connect())
    stores = [unused.Store(storage.root().rstrip("/"), registry, days)]
    if models := models_store.root():
        stores.append(unused.Store(models, registry, days, models=True))
    found = [each for store in stores for each in _clean(store, dry_run)]
    removed = [each.piece for each in found if not each.kept]
    if as_json:
        pieces = [dataclasses.asdict(each.piece) | {"kept": each.kept} for each in found]
        click.echo(json.dumps({"removed": not dry_run, "pieces": pieces}))
        return
    for each in sorted(found, key=lambda it: bool(it.kept)):
        piece, outcome = each.piece, f"stays: {each.kept}" if each.kept else "no version refers to it"
        click.echo(f"{piece.kind:<11} {piece.size / 1e9:>9.3f} GB {piece.days:>6.1f} days  {piece.uri}: {outcome}")
    verb = "would go" if dry_run else "removed"
    click.echo(f"{len(removed)} pieces, {sum(piece.size for piece in removed) / 1e9:.3f} GB, {verb}")


def _clean(store: unused.Store, dry_run: bool) -> list[Found]:
    """Removes what may go from one store; returns that, and what stays although no version needs it."""
    found = [Found(piece, store.why_kept(piece)) for piece in store.pieces]
    found = [each for each in found if each.kept != unused.NEEDED]
    if not dry_run:
        found = [each if each.kept else Found(each.piece, store.remove(each.piece)) for each in found]
        store.drop_records()
    return found
