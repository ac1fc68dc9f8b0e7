"""What of a run's work is in the store already, by its keys: later steps will find it and not do it again."""

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.registry import champion, integrity
from qlora_pipelines.components.core.store import attempts, copies, keys, storage
from qlora_pipelines.components.core.store.attempts import Finished

SCORES = "scores/"
"""Where a kept evaluation has the output `scores` of evaluate_model."""


def find(config: RunConfig, run_keys: keys.RunKeys, champion_version: str) -> dict[str, Finished | None]:
    """Finished work, or None, by what it is, in the order in which it is made.

    Args:
        config: the whole run.
        run_keys: its keys.
        champion_version: what the adapter is compared with; '' is nothing.
    """
    adapter = _find("adapters", run_keys.training_key)
    merged = _find("merged", run_keys.merge_key)
    of_adapter = _of_adapter(config, run_keys, champion_version, adapter) if adapter else None
    return {
        "prepared data": _find("prepared", run_keys.data_key),
        "adapter": adapter,
        "evaluation of the adapter": of_adapter,
        "merged model": merged,
        "evaluation of the merged model": _of_merged(config, run_keys, adapter, of_adapter, merged),
    }


def _find(*place: str) -> Finished | None:
    return attempts.find(storage.join(storage.root(), *place))


def _of_adapter(config: RunConfig, run_keys: keys.RunKeys, version: str, adapter: Finished) -> Finished | None:
    if adapter.info.get("training_key") != run_keys.training_key:
        return None  # train_qlora will say what is wrong with it
    rival = champion.find(config.model_name, version) if version else None
    if rival and rival.is_trained_as(adapter.info):
        rival = None
    key = keys.evaluation_key(
        config.for_step("evaluate_model"),
        dataset_digest=adapter.info["dataset_digest"],
        side="eval",
        base_revision=adapter.info["base_revision"],
        model_digest=integrity.digest(adapter),
        compared_with=rival.digest(adapter.info) if rival else "",
    )
    return _find("evaluations", run_keys.training_key, key)


def _of_merged(
    config: RunConfig,
    run_keys: keys.RunKeys,
    adapter: Finished | None,
    of_adapter: Finished | None,
    merged: Finished | None,
) -> Finished | None:
    if not (adapter and of_adapter and merged):
        return None
    scores = [entry for entry in copies.entries(of_adapter) if entry.path.startswith(SCORES)]
    key = keys.evaluation_key(
        config.for_step("evaluate_model"),
        dataset_digest=adapter.info["dataset_digest"],
        side="eval",
        base_revision="",
        model_digest=integrity.digest(merged),
        compared_with=keys.scores_digest({entry.path.removeprefix(SCORES): entry.etag for entry in scores}),
    )
    return _find("evaluations", run_keys.merge_key, key)
