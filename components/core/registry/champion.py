"""The champion: the version of a model that serves, and that the next one has to match.

plan_run looks for it before a GPU is held, evaluate_model scores it, register_model and `qlora promote` move its alias.
"""

import dataclasses
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.registry import mlflow_client, versions
from qlora_pipelines.components.core.store import attempts, keys

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
"""The aliases in MLflow: of the champion, of the one before it, and of the version that was registered last."""

ADAPTER_TAG = "qlora.adapter_uri"


@dataclasses.dataclass(frozen=True)
class Champion:
    """A registered version: its adapter in the store, its merged model, or both."""

    name: str
    adapter: attempts.Finished | None
    merged: attempts.Finished | None

    def is_trained_as(self, trained: dict[str, Any]) -> bool:
        """Whether it came out of the very training whose manifest says `trained`."""
        known = [work.info.get("training_key") for work in (self.adapter, self.merged) if work]
        return trained["training_key"] in known

    def adapter_for(self, trained: dict[str, Any]) -> attempts.Finished | None:
        """Its adapter, if it was trained on the same base as `trained`, quantised alike; else None."""
        if self.adapter is None:
            return None
        alike = all(self.adapter.info.get(name) == trained[name] for name in ("base_revision", "quantization"))
        return self.adapter if alike else None

    def digest(self, trained: dict[str, Any]) -> str:
        """Names by content what a model trained as `trained` says is compared with, wherever its files are."""
        work = self.adapter_for(trained) or self.merged
        return keys.digest([self.name, work and [work.info, work.files]])


def current_version(client: Any, model_name: str) -> str:
    """The number of the version that is champion now; '' where there is none.

    Raises:
        InputError: MLflow does not say.
    """
    with mlflow_client.mlflow_errors(f"reading the champion of {model_name}"):
        return versions.of_alias(client, model_name, CHAMPION)


def to_match(client: Any, model_name: str, training_key: str) -> str:
    """The number of the version that a model out of this training has to match; '' where there is none.

    That is today's champion. If it came out of this very training, there is nothing to compare: then it is what that
    champion was compared with when it was registered, so that the same run again works from what the first one did. A
    version that was deleted since, or whose files are gone, counts as none.

    Args:
        client: of MLflow.
        model_name: the registered model.
        training_key: of the training.

    Raises:
        InputError: MLflow does not say.
    """
    current = version = current_version(client, model_name)
    with mlflow_client.mlflow_errors(f"reading the champion of {model_name}"):
        while version:
            found = None
            with mlflow_client.suppress(*mlflow_client.NOT_FOUND):
                found = client.get_model_version(model_name, version)
            if found is None:
                return ""
            if not training_key or found.tags.get(versions.TRAINING_TAG) != training_key:
                # Whether today's champion is whole is for `find` to say.
                there = version == current or any(map(_whole, (found.tags.get(ADAPTER_TAG, ""), found.source)))
                return version if there else ""
            former = found.tags.get(versions.COMPARED_TAG, "")
            # A version is compared with an earlier one. MLflow may give the number of a deleted version again.
            version = former if former.isdigit() and int(former) < int(version) else ""
    return ""


def find(model_name: str, version: str) -> Champion:
    """A registered version with those of its files that are whole.

    Args:
        model_name: the registered model.
        version: its number.

    Raises:
        InputError: MLflow does not know it, or none of its files are there.
    """
    name = f"champion {version}"
    client = mlflow_client.connect(timeout=60, retries=3)
    with mlflow_client.mlflow_errors(f"{name} of {model_name}", "start a new run, which sees today's champion"):
        found = client.get_model_version(model_name, version)
    adapter_uri, merged_uri = found.tags.get(ADAPTER_TAG, ""), found.source
    champion = Champion(name, _whole(adapter_uri), _whole(merged_uri))
    if not (champion.adapter or champion.merged):
        raise InputError(
            f"{name} of {model_name}: its files are gone from {' and '.join(filter(None, (adapter_uri, merged_uri)))};"
            " put them back, or move the alias champion to a version whose files are there"
        )
    return champion


def _whole(uri: str) -> attempts.Finished | None:
    """Finished work, or None where there is none or a file of it is gone."""
    try:
        finished = attempts.read(uri) if uri else None
    except TransientError:
        raise  # a store that is away says nothing of its files
    except InputError:
        return None
    return finished if finished and not attempts.missing(finished.uri, finished.files) else None


def move(client: Any, model_name: str, version: str, former: str) -> None:
    """Sets the alias champion on a version; the former one gets the alias previous.

    `previous` goes first: if cut short in between, both aliases mean the former champion, and running again fixes it.

    Args:
        client: of MLflow.
        model_name: the registered model.
        version: the new champion's number.
        former: that of the champion until now; '': there was none.
    """
    if former == version:
        return
    if former:
        mlflow_client.retry(client.set_registered_model_alias, model_name, PREVIOUS, former)
    mlflow_client.retry(client.set_registered_model_alias, model_name, CHAMPION, version)
