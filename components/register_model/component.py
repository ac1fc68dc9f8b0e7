"""register_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def register_model(
    model_name: str,
    merged_uri: str,
    merged_digest: str,
    merge_key: str,
    adapter_uri: str,
    adapter_digest: str,
    run_config: str,
    listing_uri: str,
    tuned_figures: str,
    merged_figures: str,
    base_exact_match: float,
    pipeline_run_id: str,
    plan_report: dsl.Input[dsl.HTML],
    data_report: dsl.Input[dsl.HTML],
    training_report: dsl.Input[dsl.HTML],
    tuned_report: dsl.Input[dsl.HTML],
    merged_report: dsl.Input[dsl.HTML],
    champion_version: str = "",
) -> NamedTuple("Registered", model_version=str, model_uri=str, outcome=str):
    """Register the merged model in MLflow by reference, once, with its evidence; make it champion if none came between.

    Args:
        model_name: Name of the registered model in MLflow.
        merged_uri: Folder of the merged model.
        merged_digest: The sha256 of its manifest, which dequantize_and_merge returned; what is signed is checked by it.
        merge_key: Names the merged model; a version of this key is not made again.
        adapter_uri: Folder of the adapter in the store; it is kept next to the model, and says what it was trained on.
        adapter_digest: The sha256 of its manifest, which train_qlora returned; checked.
        run_config: The whole run's options, a JSON object, for the command that makes the model again.
        listing_uri: The files that the data consists of.
        tuned_figures: What the adapter's gate went by, a flat JSON object.
        merged_figures: What the merged model's gate went by, a flat JSON object.
        base_exact_match: Share of right answers of the base; -1 where none was generated.
        pipeline_run_id: The run of the pipeline.
        plan_report: Report of plan_run.
        data_report: Report of prepare_dataset.
        training_report: Report of train_qlora.
        tuned_report: Report of the adapter's evaluation.
        merged_report: Report of the merged model's evaluation.
        champion_version: The champion's version that the gate compared with; empty is none.

    Returns:
        model_version: Number of the version.
        model_uri: What to load it by.
        outcome: champion, or why it stays candidate.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.register_model import task

    with step("register_model"):
        return task.run(
            task.Config.parse(model_name=model_name),
            merged_uri=merged_uri,
            merged_digest=merged_digest,
            merge_key=merge_key,
            adapter_uri=adapter_uri,
            adapter_digest=adapter_digest,
            champion_version=champion_version,
            evidence={
                "run_config": run_config,
                "listing_uri": listing_uri,
                "tuned_figures": tuned_figures,
                "merged_figures": merged_figures,
                "base_exact_match": str(round(base_exact_match, 6)),
                "pipeline_run_id": pipeline_run_id,
            },
            reports={
                "1-plan": plan_report.path,
                "2-data": data_report.path,
                "3-training": training_report.path,
                "4-tuned": tuned_report.path,
                "5-merged": merged_report.path,
            },
        )
