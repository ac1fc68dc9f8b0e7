"""`qlora gc`: frees the store of what no registered version needs, judged by what the registry's versions say.

    checkpoints/<training_key>/   go when a version of that training is registered
    merged/<key>/<attempt>/       go when it is no version's source
    listings/<data_digest>.json   go when no version was trained on that data
    bases/<name>/<revision>/      go when no version was trained on that base (each run that uses one marks it)
    claims/<training_key>/        go when their runs are long past plan_run
    <merge_key>/                  the same in the store of registered models, where there is one

Adapters and tokenizers stay: they are small, and a finished training is found by its adapter.
"""

import dataclasses
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import click

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, mlflow_client, sources, versions
from qlora_pipelines.components.core.store import attempts, models_store, storage
from qlora_pipelines.pipelines.local import workspace

DEPTH = {"checkpoints": 2, "merged": 3, "listings": 2, "bases": 3, "claims": 2}
"""How many parts of a path name one piece of work, by the folder below the store."""
MERGE_KEY = re.compile("[0-9a-f]{64}")
DAY = 86400


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.option("--days", default=7.0, show_default=True, type=click.FloatRange(min=0),
              help="Keep what was written since, except checkpoints of a registered training.")  # fmt: skip
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
    store, models = storage.root().rstrip("/"), models_store.root()
    references = find_references(mlflow_client.connect())
    if not dry_run:
        check_registry(store, models, references)
    pieces = in_store(store, references, days)
    _remove(pieces, dry_run)
    if models:
        others = in_models_store(models, references, days)
        _remove(others, dry_run)
        pieces += others
    if as_json:
        click.echo(json.dumps({"removed": not dry_run, "pieces": [dataclasses.asdict(piece) for piece in pieces]}))
        return
    for piece in pieces:
        click.echo(f"{piece.kind:<11} {piece.size / 1e9:>9.3f} GB {piece.days:>6.1f} days  {piece.uri}: {piece.why}")
    verb = "would go" if dry_run else "removed"
    click.echo(f"{len(pieces)} pieces, {sum(piece.size for piece in pieces) / 1e9:.3f} GB, {verb}")


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piece of work that may go: its address, bytes, days since it was last written, and why it may."""

    kind: str
    uri: str
    size: int
    days: float
    why: str


@dataclasses.dataclass(frozen=True)
class References:
    """What the versions of all models refer to; addresses are spelt as sources are in MLflow."""

    sources: frozenset[str]
    bases: frozenset[str]
    data: frozenset[str]
    trainings: frozenset[str]


def find_references(client: Any) -> References:
    """Reads every version of every model that this login sees."""
    with mlflow_client.mlflow_errors("reading the registry"):
        found = versions.search(client)
    return References(
        sources=frozenset(sources.source_uri(item.source.rstrip("/")) for item in found),
        bases=frozenset(sources.source_uri(item.tags.get("qlora.base_uri", "").rstrip("/")) for item in found),
        data=frozenset(item.tags.get("qlora.data_digest", "") for item in found),
        trainings=frozenset(
            item.tags.get("qlora.training_key", "") for item in found if manifest.MANIFEST_TAG in item.tags
        ),
    )


def check_registry(store: str, models: str, references: References) -> None:
    """Refuses to remove anything where not one version refers to these stores: then the registry is likely another's.

    Raises:
        InputError: none does.
    """
    if not any(_below(place, references.sources | references.bases) for place in (store, models) if place):
        raise InputError(f"no version in this registry refers to {store}; nothing is removed: is it the right MLflow?")


def in_store(store: str, references: References, days: float) -> list[Piece]:
    """What may go from the store.

    Args:
        store: its address.
        references: of the registry's versions.
        days: what was written since is kept, since a run may use it; not checkpoints of a registered training.
    """
    found = []
    for uri, size, age in _pieces(store, DEPTH):
        kind, name = uri.removeprefix(f"{store}/").split("/")[:2]
        needed, why = {
            "checkpoints": (name not in references.trainings, "its training is registered"),
            "merged": (sources.source_uri(uri) in references.sources, "no version refers to it"),
            "bases": (_below(uri, references.bases), "no version refers to it"),
            "listings": (name.removesuffix(".json") in references.data, "no version was trained on it"),
            "claims": (False, "its runs are past plan_run"),
        }[kind]
        if not needed and (age >= days or kind == "checkpoints"):
            found.append(Piece(kind, uri, size, age, why))
    return found


def in_models_store(store: str, references: References, days: float) -> list[Piece]:
    """What may go from the store of registered models: folders named by a merge_key; all else there is not ours."""
    return [
        Piece("models", uri, size, age, "no version refers to it")
        for uri, size, age in _pieces(store, {"": 1})
        if MERGE_KEY.fullmatch(uri.rsplit("/", 1)[1])
        and sources.source_uri(uri) not in references.sources
        and age >= days
    ]


def _remove(pieces: list[Piece], dry_run: bool) -> None:
    """Removes them; each stops counting as finished before its files go."""
    for piece in [] if dry_run else pieces:
        storage.remove(piece.uri, first=attempts.MANIFEST)


def _pieces(store: str, depth: dict[str, int]) -> Iterator[tuple[str, int, float]]:
    """Address, bytes and age in days of every piece of work below a store."""
    sizes: dict[str, int] = {}
    written: dict[str, float] = {}
    for file in storage.files(store, hidden=True):
        parts = file.path.split("/")
        deep = depth.get(parts[0], depth.get("", 0))
        if deep and len(parts) >= deep:
            uri = storage.join(store, *parts[:deep])
            sizes[uri] = sizes.get(uri, 0) + file.size
            written[uri] = max(written.get(uri, 0.0), file.modified)
    for uri in sorted(sizes):
        yield uri, sizes[uri], (time.time() - written[uri]) / DAY


def _below(uri: str, addresses: frozenset[str]) -> bool:
    source = sources.source_uri(uri)
    return any(address == source or address.startswith(f"{source}/") for address in addresses)
