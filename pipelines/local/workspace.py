"""Where the store and the registry are on a laptop: in `runs/`, unless the environment names others."""

import os
from pathlib import Path

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage

DEFAULT = Path("runs")
DATABASE = "mlflow.db"


def use(runs: Path = DEFAULT) -> str:
    """Sets QLORA_STORE and MLFLOW_TRACKING_URI, where they are not set, to a store and a database in a folder.

    Args:
        runs: the folder.

    Returns:
        The registry to name to later commands; '' where they find it by themselves.
    """
    os.environ.setdefault(storage.STORE_VARIABLE, str(runs.absolute() / "store"))
    registry = f"sqlite:///{runs.absolute() / DATABASE}"
    found = os.environ.setdefault(mlflow_client.URI_VARIABLE, registry)
    return registry if found == registry and runs.absolute() != DEFAULT.absolute() else ""


def use_existing() -> None:
    """Does the same with `runs/` if it has a database, for commands that read what earlier runs left."""
    if (DEFAULT / DATABASE).exists():
        use()
