"""Where store and registry are on a laptop: under `runs/`, unless the environment names others."""

import os
from pathlib import Path

from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import storage

DEFAULT = Path("runs")
DATABASE = "mlflow.db"


def use(runs: Path = DEFAULT) -> str:
    """Lets QLORA_STORE and MLFLOW_TRACKING_URI, where they are not set, name a store and a database in a folder.

    Args:
        runs: the folder.

    Returns:
        The registry that later commands must be told of: '' where they find it by themselves.
    """
    os.environ.setdefault(storage.STORE_VARIABLE, str(runs.absolute() / "store"))
    registry = f"sqlite:///{runs.absolute() / DATABASE}"
    found = os.environ.setdefault(mlflow_client.URI_VARIABLE, registry)
    return registry if found == registry and runs.absolute() != DEFAULT.absolute() else ""


def use_existing() -> None:
    """The same with `runs/`, for commands that read what runs left, where there is one."""
    if (DEFAULT / DATABASE).exists():
        use()
