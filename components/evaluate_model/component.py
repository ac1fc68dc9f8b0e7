"""evaluate_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CUDA, install_kfp_package=False)
def evaluate_model(
    eval_set: dsl.Input[dsl.Dataset],
    dataset_digest: str,
    base_uri: str,
    scores: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    adapter: dsl.Input[dsl.Model] = None,
    adapter_scores: dsl.Input[dsl.Artifact] = None,
    adapter_digest: str = "",
    merged_uri: str = "",
    merged_digest: str = "",
    model_name: str = "",
    champion_version: str = "",
    model_key: str = "",
    options: str = "{}",
) -> NamedTuple(
    "Evaluated",
    passed=bool,
    reason=str,
    loss=float,
    reference_loss=float,
    exact_match=float,
    reference_exact_match=float,
    merge_base=str,
    figures=str,
):
    """Judge the adapter against base and champion, or the merged model against the adapter.

    Args:
        eval_set: Tokenised held-out rows from prepare_dataset.
        dataset_digest: What prepare_dataset said it made; checked before scoring.
        base_uri: Folder of the base model.
        scores: Folder with every model's scores (scores.parquet) and answers (answers.jsonl), row by row.
        metrics: The figures, for the comparison of runs.
        report: Verdict, figures and answers side by side.
        adapter: Adapter to judge against the base.
        adapter_scores: Scores of the adapter, to judge the merged model against.
        adapter_digest: The sha256 of the adapter's manifest, which train_qlora returned; checked with adapter.
        merged_uri: Folder of the merged model to judge; empty judges the adapter.
        merged_digest: The sha256 of its manifest, which dequantize_and_merge returned; checked with merged_uri.
        model_name: Name of the registered model, to compare the adapter with its champion.
        champion_version: Version of that name to compare with; empty is none.
        model_key: The training_key or merge_key of the model to judge; a finished evaluation is found by it and copied.
            Empty judges anew.
        options: Further options, a JSON object.

    Returns:
        passed: Whether the model may go on.
        reason: Why, in one sentence.
        loss: Nats a supervised token.
        reference_loss: The same of the base, or of the adapter.
        exact_match: Share of right answers; -1 where none was generated.
        reference_exact_match: The same of the base, or of the adapter.
        merge_base: What to merge the adapter into, dequantized or original.
        figures: What the gate saw, a flat JSON object: figures with bounds, rows, groups, confidence.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.evaluate_model import task

    with step("evaluate_model"):
        result = task.run(
            task.Config.parse(options),
            eval_set=eval_set.path,
            dataset_digest=dataset_digest,
            base_uri=base_uri,
            scores=scores.path,
            report=report.path,
            adapter=adapter.path if adapter else "",
            adapter_digest=adapter_digest,
            merged_uri=merged_uri,
            merged_digest=merged_digest,
            adapter_scores=adapter_scores.path if adapter_scores else "",
            model_name=model_name,
            champion_version=champion_version,
            model_key=model_key,
        )
        for name, value in task.shown(result).items():
            metrics.log_metric(name, value)
        return result
