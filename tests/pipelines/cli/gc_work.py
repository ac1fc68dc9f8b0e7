"""What the tests of gc share: work in a store, of an age, with the records that a run leaves."""

import os
from pathlib import Path
from typing import Any

import mlflow
import pytest

from qlora_pipelines.components.core.registry import references
from qlora_pipelines.components.core.store import attempts
from tests.pipelines.cli.registered import Make, aged


def client() -> Any:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(uri, uri)


def use_registry(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{file}")


def record_run(store: str, key: str, *names: str, days: float = 30) -> None:
    """What plan_run of a run says in the store that it will make and use; so long ago."""
    named = [*references.pieces(training_key=f"training-{key}", merge_key=key), f"claims/training-{key}", *names]
    references.write(references.registry_id(client()), [store], key, named)
    aged(Path(store, "references"), days)


def write(store: str, *names: str, days: float = 30) -> None:
    for name in names:
        path = Path(store) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
        aged(path, days)


def make_adapter(store: str, training_key: str) -> None:
    with attempts.attempt(f"{store}/adapters/{training_key}") as attempt:
        attempt.write("adapter_model.safetensors", b"weights")
        attempt.commit({})


def merged(make: Make, store: str, key: str, days: float = 30) -> Path:
    path = Path(make(store, key)[0])
    aged(path, days)
    return path
