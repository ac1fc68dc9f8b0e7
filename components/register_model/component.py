"""register_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def register_model(
    model_name: str,
    merged_uri: str,
    merge_key: str,
    adapter_uri: str,
    base_model: str,
    base_revision: str,
    base_uri: str,
    listing_uri: str,
    data_digest: str,
    dataset_digest: str,
    training_key: str,
    run_config: str,
    pipeline_run_id: str,
    loss: float,
    base_loss: float,
    exact_match: float,
    base_exact_match: float,
    plan_report: dsl.Input[dsl.HTML],
    data_report: dsl.Input[dsl.HTML],
    training_report: dsl.Input[dsl.HTML],
    tuned_report: dsl.Input[dsl.HTML],
    merged_report: dsl.Input[dsl.HTML],
    champion_version: str = "",
    tuned_figures: str = "",
    merged_figures: str = "",
) -> NamedTuple("Registered", model_version=str, model_uri=str, outcome=str):
    """Register the merged model in MLflow by reference, once, with its evidence; make it champion if none came between.

    Args:
        model_name: Name of the registered model in MLflow.
        merged_uri: Folder of the merged model.
        merge_key: Names the merged model; a version of this key is not made again.
        adapter_uri: Folder of the adapter in the store; it is kept beside the model.
        base_model: What the model was trained on.
        base_revision: Commit, or digest of the base model's files.
        base_uri: Folder of the base model.
        listing_uri: The files that the data consists of.
        data_digest: Names the data it was trained on.
        dataset_digest: Names the tokenised sets.
        training_key: Names the adapter.
        run_config: The whole run's options, a JSON object, for the command that makes the model again.
        pipeline_run_id: The run of the pipeline.
        loss: Nats a supervised token of the merged model.
        base_loss: The same of the base.
        exact_match: Share of right answers of the merged model; -1 where none was generated.
        base_exact_match: The same of the base.
        plan_report: Report of plan_run.
        data_report: Report of prepare_dataset.
        training_report: Report of train_qlora.
        tuned_report: Report of the adapter's evaluation.
        merged_report: Report of the merged model's evaluation.
        champion_version: The champion's version that the gate compared with; empty is none.
        tuned_figures: What the adapter's gate went by, a flat JSON object.
        merged_figures: What the merged model's gate went by, a flat JSON object.

    Returns:
        model_version: Number of the version.
        model_uri: What to load it by.
        outcome: champion, or why it stays candidate.
    """
    from qlora_pipelines.components.core.runtime import step
    from qlora_pipelines.components.register_model import task

    with step("register_model"):
        return task.run(
            task.Config.parse(model_name=model_name),
            merged_uri=merged_uri,
            merge_key=merge_key,
            adapter_uri=adapter_uri,
            champion_version=champion_version,
            evidence={
                "base_model": base_model,
                "base_revision": base_revision,
                "base_uri": base_uri,
                "listing_uri": listing_uri,
                "data_digest": data_digest,
                "dataset_digest": dataset_digest,
                "training_key": training_key,
                "run_config": run_config,
                "pipeline_run_id": pipeline_run_id,
                "loss": f"{loss:.6f}",
                "base_loss": f"{base_loss:.6f}",
                "exact_match": f"{exact_match:.4f}",
                "base_exact_match": f"{base_exact_match:.4f}",
                "tuned_figures": tuned_figures,
                "merged_figures": merged_figures,
            },
            reports={
                "1-plan": plan_report.path,
                "2-data": data_report.path,
                "3-training": training_report.path,
                "4-tuned": tuned_report.path,
                "5-merged": merged_report.path,
            },
        )
