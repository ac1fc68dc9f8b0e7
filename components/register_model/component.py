"""register_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def register_model(
    model_name: str,
    merged_uri: str,
    merge_key: str,
    base_model: str,
    base_revision: str,
    data_digest: str,
    dataset_digest: str,
    training_key: str,
    loss: float,
    base_loss: float,
    exact_match: float,
    base_exact_match: float,
) -> NamedTuple("Registered", model_version=str, model_uri=str):
    """Register the merged model in MLflow by reference, with its evidence as tags, as champion.

    Args:
        model_name: Name of the registered model in MLflow.
        merged_uri: Folder of the merged model.
        merge_key: Names the merged model; a version of this key is not made again.
        base_model: What the model was trained on.
        base_revision: Commit, or digest of the base model's files.
        data_digest: Names the data it was trained on.
        dataset_digest: Names the tokenised sets.
        training_key: Names the adapter.
        loss: Nats a supervised token of the merged model.
        base_loss: The same of the base.
        exact_match: Share of right answers of the merged model; -1 where none was generated.
        base_exact_match: The same of the base.

    Returns:
        model_version: Number of the version.
        model_uri: What to load it by.
    """
    from components.core.steps import step
    from components.register_model import task

    with step("register_model"):
        return task.run(
            task.Config.parse(model_name=model_name),
            merged_uri=merged_uri,
            merge_key=merge_key,
            evidence={
                "base_model": base_model,
                "base_revision": base_revision,
                "data_digest": data_digest,
                "dataset_digest": dataset_digest,
                "training_key": training_key,
                "loss": f"{loss:.6f}",
                "base_loss": f"{base_loss:.6f}",
                "exact_match": f"{exact_match:.4f}",
                "base_exact_match": f"{base_exact_match:.4f}",
            },
        )
