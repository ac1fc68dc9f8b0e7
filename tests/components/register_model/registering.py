"""What the tests of registration share."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_pipelines.components.core.config.steps import RegisterConfig
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import attempts, storage
from qlora_pipelines.components.register_model import task
from tests.components.conftest import digest

EVIDENCE = {"base_model": "org/tiny", "base_revision": "abc", "loss": "0.5", "base_loss": "0.9", "exact_match": "0.75"}


def register(name: str, merged_uri: str, key: str, **others: Any) -> task.Result:
    """Registers a model, with the digests that the steps before would hand on."""
    given = {"merged_uri": merged_uri, "merge_key": key} | others
    for work in ("merged", "adapter"):
        if f"{work}_uri" in given and f"{work}_digest" not in given:
            given[f"{work}_digest"] = digest(given[f"{work}_uri"])
    return task.run(RegisterConfig(model_name=name), **given | {"evidence": EVIDENCE | given.get("evidence", {})})


def copies(merged_uri: str, place: Path) -> Callable[[str], tuple[str, str]]:
    """Makes a merged model of its own for each key: a copy of the real one; gives address and key."""

    def copy(key: str) -> tuple[str, str]:
        target = place / key / "attempt"
        shutil.copytree(merged_uri, target, dirs_exist_ok=True)
        kept = set(attempts.read(merged_uri).files) | {attempts.MANIFEST}
        for path in [path for path in target.rglob("*") if path.is_file()]:
            if path.relative_to(target).as_posix() not in kept:
                path.unlink()
        return str(target), key

    return copy


def versions(name: str) -> list[Any]:
    return list(mlflow_client.connect().search_model_versions(f"name = '{name}'"))


def aliases(name: str) -> dict[str, str]:
    return {alias: str(to) for alias, to in mlflow_client.connect().get_registered_model(name).aliases.items()}


class Killed(BaseException):
    """As a process that is killed: nothing between here and the end of the program handles it."""


CALLS = (
    "create_registered_model", "create_experiment", "create_run", "create_model_version", "delete_model_version",
    "set_model_version_tag", "set_registered_model_alias", "log_inputs", "log_batch", "log_text", "set_terminated",
)  # fmt: skip


def kill_after(count: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Lets the first `count` writes to MLflow and the store through, and ends the program after the last of them."""
    import mlflow

    made: list[str] = []

    def wrap(place: Any, name: str) -> None:
        real = getattr(place, name)

        def call(*given: Any, **named: Any) -> Any:
            result = real(*given, **named)
            made.append(name)
            if len(made) >= count:
                raise Killed
            return result

        patch.setattr(place, name, call)

    for name in CALLS:
        wrap(mlflow.MlflowClient, name)
    for name in ("write_bytes", "upload_file"):
        wrap(storage, name)
    return made
