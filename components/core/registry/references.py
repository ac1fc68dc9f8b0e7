"""Which registry refers to what in a store, written in the store itself, because several registries can share it.

    STORE/references/<registry id>/<merge_key>/run.json                a run: what it makes and what it uses
    STORE/references/<registry id>/<merge_key>/<model>-<version>.json  a registered version, likewise

plan_run writes the first before anything is made, register_model the second; both go to the store of registered
models too, where there is one. `qlora gc` removes only what records of its own registry name, and of no other.
"""

import dataclasses
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage

FOLDER = "references"
EXPERIMENT = "qlora-pipelines-registry"
"""An MLflow experiment without runs. Its tag ID_TAG tells this registry from others, whatever its address is."""
ID_TAG = "qlora.registry_id"
_NOTE = "Names this registry to qlora gc, which removes nothing from a shared store that another one refers to."


@dataclasses.dataclass(frozen=True)
class Reference:
    """One record.

    Attributes:
        uri: where the record is.
        registry: id of the registry.
        server: its address when the record was written, for messages.
        pieces: what it refers to: paths below the store, each of a file or of a folder with all in it.
        model: the registered model; '' in the record of a run.
        version: its version.
        written: when, in seconds since 1970 by the store's clock.
    """

    uri: str
    registry: str
    server: str
    pieces: frozenset[str]
    model: str
    version: str
    written: float


def registry_id(client: Any, *, create: bool = True) -> str:
    """The id of the registry that a client is connected to.

    Args:
        client: of MLflow.
        create: whether to give it one where it has none; else it is ''.

    Raises:
        InputError: MLflow does not say, or refuses.
    """
    with mlflow_client.mlflow_errors(f"reading the experiment {EXPERIMENT}, which every login must be able to read"):
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None and create:
            # MLflow creates a name once: of two at the same moment, one is refused and reads the other's id.
            with mlflow_client.suppress("RESOURCE_ALREADY_EXISTS"):
                client.create_experiment(EXPERIMENT, tags={ID_TAG: uuid.uuid4().hex, "mlflow.note.content": _NOTE})
            found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None and ID_TAG not in found.tags:
            raise InputError(f"MLflow's experiment {EXPERIMENT} has no tag {ID_TAG}: rename it, it has another's name")
        return found.tags[ID_TAG] if found else ""


def pieces(
    *, training_key: str, merge_key: str, data_key: str = "", data_digest: str = "", base_uri: str = ""
) -> list[str]:
    """The paths, below a store, of what a run makes and uses there.

    Args:
        training_key: of the run.
        merge_key: of the run; in the store of registered models it is a folder's name.
        data_key: of the run; '': not known.
        data_digest: of its data; '': not known.
        base_uri: the base model's folder; one outside the store is left out.
    """
    found = [merge_key, f"merged/{merge_key}", f"evaluations/{merge_key}"]
    if training_key:
        found += [f"checkpoints/{training_key}", f"evaluations/{training_key}"]
    if data_key:
        found.append(f"prepared/{data_key}")
    if data_digest:
        found.append(f"listings/{data_digest}.json")
    prefix = storage.join(storage.root(), "bases") + "/"
    if base_uri.startswith(prefix):
        found.append("/".join(["bases", *base_uri.removeprefix(prefix).split("/")[:2]]))
    return found


def write(
    registry: str, stores: Iterable[str], merge_key: str, named: Iterable[str], model: str = "", version: str = ""
) -> None:
    """Writes the record of a run, or of a version; again makes it new.

    Args:
        registry: its id.
        stores: where to; '' is passed over.
        merge_key: of the run.
        named: as `pieces` gives it.
        model: the registered model; '': it is the record of a run.
        version: its version.

    Raises:
        InputError: a store cannot be written.
    """
    name = f"{urllib.parse.quote(model, safe='')}-{version}.json" if model else "run.json"
    server = mlflow_client.hide_password(os.environ.get(mlflow_client.URI_VARIABLE, ""))
    content = {"server": server, "pieces": sorted(named), "model": model, "version": version}
    for store in filter(None, stores):
        storage.write_bytes(
            storage.join(store, FOLDER, registry, merge_key, name), json.dumps(content, indent=1).encode()
        )


class References:
    """The `records` in a store; `refresh` reads those that were written since."""

    def __init__(self, store: str) -> None:
        """Reads them all.

        Raises:
            InputError: the store cannot be read, or a record is damaged.
        """
        self.uri = storage.join(store, FOLDER)
        self._known: dict[storage.Entry, tuple[float, Reference]] = {}
        self.records = self.refresh()

    def refresh(self) -> list[Reference]:
        """Lists the records again, reads those that are new, and returns all."""
        found = list(storage.files(self.uri))
        with ThreadPoolExecutor(storage.PARALLEL) as pool:
            read = list(pool.map(self._read, found))
        self._known = {entry: (entry.modified, record) for entry, record in zip(found, read, strict=True)}
        self.records = read
        return read

    def _read(self, entry: storage.Entry) -> Reference:
        known = self._known.get(entry)
        if known and known[0] == entry.modified:
            return known[1]
        uri = storage.join(self.uri, entry.path)
        try:
            content = json.loads(storage.read_bytes(uri))
            server, model, version = (str(content[name]) for name in ("server", "model", "version"))
            registry = entry.path.split("/")[0]
            return Reference(uri, registry, server, frozenset(content["pieces"]), model, version, entry.modified)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{uri} is damaged; nothing is removed as long as it is there") from None


def age(record: Reference) -> float:
    """Days since a record was written."""
    return (time.time() - record.written) / 86_400
