"""What of a store a registry no longer needs, and why the rest stays. `gc` lists it and removes it.

A registry that says nothing of a piece of work does not say that nobody needs it: it may be another registry's, or of
a run that has not come to registration yet. So a piece may go only if the records in the store
(core/registry/references.py) name it for this registry and for no other. What the steps of old runs said of their end
goes without a record.
"""

import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

from qlora_pipelines.components.core.registry import manifest, mlflow_client, references, sources, versions
from qlora_pipelines.components.core.registry.references import Reference, References
from qlora_pipelines.components.core.store import attempts, outcomes, storage

DEPTH = {"checkpoints": 2, "merged": 3, "evaluations": 2, "prepared": 2, "listings": 2, "bases": 3, "claims": 2,
         outcomes.FOLDER: 2}  # fmt: skip
"""How many parts of a path name one piece of work, by the folder below the store."""
MERGE_KEY = re.compile("[0-9a-f]{64}")
DAY = 86400
NEEDED = "a version needs it"
_FINISHING = (attempts.MANIFEST, manifest.MANIFEST)


@dataclasses.dataclass(frozen=True)
class Piece:
    """One piece of work: its kind, address, path below the store, bytes, and days since it was last written."""

    kind: str
    uri: str
    path: str
    size: int
    days: float


class Registry:
    """What a registry's versions refer to, as far as this login sees them; addresses are resolved."""

    def __init__(self, client: Any) -> None:
        """Reads every version of every model."""
        self._client = client
        self.id = references.registry_id(client, create=False)
        with mlflow_client.mlflow_errors("reading the registry"):
            found = versions.search(client)
        self._versions = {(item.name, str(item.version)) for item in found}
        self.sources = {sources.resolved(item.source) for item in found}
        self.bases = {sources.resolved(uri) for item in found if (uri := item.tags.get("qlora.base_uri"))}
        self.data = {item.tags.get("qlora.data_digest", "") for item in found}
        self.keys = {item.tags.get(tag, "") for item in found for tag in ("qlora.training_key", versions.KEY_TAG)}
        self.trainings = {
            item.tags.get("qlora.training_key", "") for item in found if manifest.MANIFEST_TAG in item.tags
        }

    def has(self, record: Reference) -> bool:
        """Whether the version of a record is there, or may be: it can be one that this login does not see."""
        if not record.model:
            return False
        if (record.model, record.version) not in self._versions:
            with mlflow_client.mlflow_errors(f"{record.model} version {record.version}"):
                with mlflow_client.suppress(*mlflow_client.NOT_FOUND):
                    with mlflow_client.suppress("PERMISSION_DENIED"):
                        self._client.get_model_version(record.model, record.version)
                    return True
                return False
        return True


class Store:
    """A store as one registry sees it.

    Args:
        uri: its address.
        registry: whose work may go.
        days: what was written or used since is kept; 0: nothing is, so no run may be under way.
        models: whether it is the store of registered models, which has one folder for each merge_key.
    """

    def __init__(self, uri: str, registry: Registry, days: float, *, models: bool = False) -> None:
        """Reads its records and lists its work."""
        self.uri, self._registry, self._days = uri, registry, days
        self._references = References(uri)
        found = _pieces(uri, {"": 1} if models else DEPTH)
        self.pieces = [piece for piece in found if not models or MERGE_KEY.fullmatch(piece.path)]
        self._written = {piece.path: piece.days for piece in self.pieces}

    def why_kept(self, piece: Piece) -> str:
        """Why a piece stays, by the records read last: NEEDED where a version needs it, '' where it may go."""
        name = piece.path.rsplit("/", 1)[-1]
        if self._is_needed(piece, name):
            return NEEDED
        if piece.kind == outcomes.FOLDER:  # what a run's steps told, whoever's run it was: it has been read
            return ""
        if piece.kind == "checkpoints" and not attempts.find(storage.join(self.uri, "adapters", name)):
            return "its training is not finished"
        named = [record for record in self._references.records if _names(record, piece.path)]
        if others := [record for record in named if record.registry != self._registry.id]:
            return f"the registry at {others[0].server} refers to it, see {others[0].uri}"
        if not named:
            return f"no record in {self._references.uri} says that it is this registry's"
        if piece.kind == "checkpoints" and name in self._registry.trainings:
            return ""
        if piece.days < self._days:
            return f"it was written in the last {self._days:g} days"
        return next(filter(None, map(self._why_current, named)), "")

    def _is_needed(self, piece: Piece, name: str) -> bool:
        registry, address = self._registry, sources.resolved(piece.uri)
        if piece.kind in ("checkpoints", "prepared", "claims"):
            return False
        if piece.kind == outcomes.FOLDER:
            return piece.days < self._days
        if piece.kind == "evaluations":
            return name in registry.keys
        if piece.kind == "listings":
            return name.removesuffix(".json") in registry.data
        return any(_is_within(uri, address) for uri in (registry.bases if piece.kind == "bases" else registry.sources))

    def _why_current(self, record: Reference) -> str:
        """Why a record of this registry still holds what it names; '' where it is out of date."""
        if record.model:
            found = self._registry.has(record)
            return f"{record.model} version {record.version} refers to it" if found else ""
        used = [days for path, days in self._written.items() if _names(record, path)]
        if min([references.age(record), *used]) < self._days:
            return f"a run used it in the last {self._days:g} days"
        return ""

    def remove(self, piece: Piece) -> str:
        """Removes a piece; returns '', or why it stays after all.

        A run writes its record, and then looks for finished work. Here the work stops being finished, and then the
        records are read again. So either the run finds no finished work, or its record is seen here in time.
        """
        self._references.refresh()
        if why := self.why_kept(piece):
            return why
        finishing = [uri for uri in _files(piece.uri) if uri == piece.uri or uri.rsplit("/", 1)[-1] in _FINISHING]
        contents = {uri: storage.read_bytes(uri) for uri in finishing}
        for uri in finishing:
            storage.delete(uri)
        self._references.refresh()
        if why := self.why_kept(piece):
            for uri, content in contents.items():
                storage.write_bytes(uri, content)
            return why
        storage.remove(piece.uri, first=attempts.MANIFEST)
        return ""

    def drop_records(self) -> None:
        """Removes the records of this registry that are out of date. What they named has gone, or others hold it."""
        for record in self._references.refresh():
            if record.registry == self._registry.id and not self._why_current(record):
                storage.delete(record.uri)


def _pieces(store: str, depth: dict[str, int]) -> Iterator[Piece]:
    """Every piece of work below a store."""
    sizes: dict[str, int] = {}
    written: dict[str, float] = {}
    for file in storage.files(store, hidden=True):
        parts = file.path.split("/")
        deep = depth.get(parts[0], depth.get("", 0))
        if deep and len(parts) >= deep:
            path = "/".join(parts[:deep])
            sizes[path] = sizes.get(path, 0) + file.size
            written[path] = max(written.get(path, 0.0), file.modified)
    for path in sorted(sizes):
        kind = path.split("/")[0] if "/" in path else "models"
        yield Piece(kind, storage.join(store, path), path, sizes[path], (time.time() - written[path]) / DAY)


def _files(uri: str) -> list[str]:
    return [storage.file_uri(uri, entry) for entry in storage.files(uri)]


def _names(record: Reference, path: str) -> bool:
    return any(_is_within(path, named) for named in record.pieces)


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
