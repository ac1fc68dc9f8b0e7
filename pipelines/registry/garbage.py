"""What in the store nothing refers to any more, found by what the registry's versions say.

    checkpoints/<training_key>/   go when a version of that training is registered
    merged/<key>/<attempt>/       go when no version's source lies there
    listings/<data_digest>.json   go when no version was trained on that data
    bases/<name>/<revision>/      go when no version was trained on that base (each run that uses one marks it)
    claims/<training_key>/        go when their runs are long past plan_run
    <merge_key>/                  the same in the store of registered models, where there is one

Adapters and tokenizers stay: they are small, and a finished training is found by its adapter.
"""

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import manifest, versions
from qlora_pipelines.components.core.store import attempts, storage, transfer

DEPTH = {"checkpoints": 2, "merged": 3, "listings": 2, "bases": 3, "claims": 2}
"""How many parts of a path name one piece of work, by the folder below the store."""
MERGE_KEY = re.compile("[0-9a-f]{64}")
DAY = 86400


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
    """What the versions of all models refer to."""

    sources: frozenset[str]
    bases: frozenset[str]
    data: frozenset[str]
    trainings: frozenset[str]


def references(client: Any) -> References:
    """Reads every version of every name that this login sees."""
    with versions.explained("reading the registry"):
        found = versions.versions(client)
    whole = [item for item in found if manifest.MANIFEST_TAG in item.tags]
    return References(
        sources=frozenset(item.source.rstrip("/") for item in found),
        bases=frozenset(item.tags.get("qlora.base_uri", "").rstrip("/") for item in found),
        data=frozenset(item.tags.get("qlora.data_digest", "") for item in found),
        trainings=frozenset(item.tags.get("qlora.training_key", "") for item in whole),
    )


def in_store(store: str, refer: References, days: float) -> list[Piece]:
    """What may go from the store.

    Args:
        store: its address.
        refer: what the registry's versions refer to.
        days: what was written since is kept: a run may be at work on it.
    """
    found = []
    for uri, size, age in _pieces(store, DEPTH):
        kind, name = uri.removeprefix(f"{store}/").split("/")[:2]
        if kind == "checkpoints" and name in refer.trainings:
            found.append(Piece(kind, uri, size, age, "its training is registered"))
        elif age < days or kind == "checkpoints":
            continue
        elif (kind == "merged" and uri not in refer.sources) or (kind == "bases" and not _below(uri, refer.bases)):
            found.append(Piece(kind, uri, size, age, "no version refers to it"))
        elif kind == "listings" and name.removesuffix(".json") not in refer.data:
            found.append(Piece(kind, uri, size, age, "no version was trained on it"))
        elif kind == "claims":
            found.append(Piece(kind, uri, size, age, "its runs are past plan_run"))
    return found


def in_models_store(store: str, refer: References, days: float) -> list[Piece]:
    """What may go from the store of registered models: folders named by a merge_key; all else there is not ours."""
    return [
        Piece("models", uri, size, age, "no version refers to it")
        for uri, size, age in _pieces(store, {"": 1})
        if MERGE_KEY.fullmatch(uri.rsplit("/", 1)[1]) and uri not in refer.sources and age >= days
    ]


def check_registry(store: str, refer: References) -> None:
    """Refuses to remove anything where not one version refers to this store: then the registry is likely another's.

    Raises:
        InputError: none does.
    """
    places = [store, *filter(None, [os.environ.get(transfer.MODELS_VARIABLE, "").rstrip("/")])]
    if not any(_below(place, refer.sources | refer.bases) for place in places):
        raise InputError(f"no version in this registry refers to {store}; nothing is removed: is it the right MLflow?")


def remove(pieces: list[Piece]) -> None:
    """Removes them; each stops counting as finished before its files go."""
    for piece in pieces:
        transfer.remove(piece.uri, attempts.MANIFEST)


def _pieces(store: str, depth: dict[str, int]) -> Iterator[tuple[str, int, float]]:
    """Address, bytes and age in days of every piece of work below a store."""
    sizes: dict[str, int] = {}
    written: dict[str, float] = {}
    for file in transfer.dated(store):
        parts = file.path.split("/")
        deep = depth.get(parts[0], depth.get("", 0))
        if deep and len(parts) >= deep:
            uri = storage.join(store, *parts[:deep])
            sizes[uri] = sizes.get(uri, 0) + file.size
            written[uri] = max(written.get(uri, 0.0), file.written)
    for uri in sorted(sizes):
        yield uri, sizes[uri], (time.time() - written[uri]) / DAY


def _below(uri: str, addresses: frozenset[str]) -> bool:
    return any(address == uri or address.startswith(f"{uri}/") for address in addresses)
