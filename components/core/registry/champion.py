"""Today's champion in MLflow, and which of its files a new model can be compared with.

plan_run looks for them before a GPU is held, evaluate_model scores them.
"""

import dataclasses
from typing import Any

from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.registry import mlflow_client
from qlora_pipelines.components.core.store import attempts


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
        """Its adapter, where it sits on the very base that `trained` sits on, quantised alike; else None."""
        if self.adapter is None:
            return None
        alike = all(self.adapter.info.get(name) == trained[name] for name in ("base_revision", "quantization"))
        return self.adapter if alike else None


def find(model_name: str, version: str) -> Champion:
    """A registered version with those of its files that are whole.

    Args:
        model_name: the registered model.
        version: the version that plan_run found the alias champion on.

    Raises:
        InputError: MLflow does not know it, or none of its files are there.
    """
    import mlflow

    name = f"champion {version}"
    try:
        found = mlflow_client.client(timeout=60, retries=3).get_model_version(model_name, version)
    except mlflow.MlflowException as error:
        reason = mlflow_client.reason(error)
        raise InputError(f"{name} of {model_name}: {reason}; start a new run, which sees today's champion") from None
    addresses = [uri for uri in (found.tags.get("qlora.adapter_uri", ""), found.source) if uri]
    works = {uri: _whole(uri) for uri in addresses}
    if not any(works.values()):
        raise InputError(
            f"{name} of {model_name}: its files are gone from {' and '.join(addresses)}; put them back, or move the"
            " alias champion to a version whose files are there"
        )
    return Champion(name, works.get(found.tags.get("qlora.adapter_uri", "")), works.get(found.source))


def _whole(uri: str) -> attempts.Finished | None:
    """Finished work, or None where a file of it is gone."""
    try:
        finished = attempts.read(uri)
    except InputError:
        return None
    return None if attempts.missing(finished) else finished
