"""evaluate_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from components import images


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
    merged_uri: str = "",
    options: str = "{}",
) -> NamedTuple(
    "Evaluated",
    passed=bool,
    reason=str,
    loss=float,
    reference_loss=float,
    exact_match=float,
    reference_exact_match=float,
):
    """Judge the adapter against the base, or the merged model against the adapter.

    Args:
        eval_set: Tokenised held-out rows from prepare_dataset.
        dataset_digest: What prepare_dataset said it made; checked before scoring.
        base_uri: Folder of the base model.
        scores: Scores and answers of every row, a JSON file.
        metrics: The figures, for the comparison of runs.
        report: Verdict, figures and answers side by side.
        adapter: Adapter to judge against the base.
        adapter_scores: Scores of the adapter, to judge the merged model against.
        merged_uri: Folder of the merged model to judge; empty judges the adapter.
        options: Further options, a JSON object.

    Returns:
        passed: Whether the model may go on.
        reason: Why, in one sentence.
        loss: Nats a supervised token.
        reference_loss: The same of the base, or of the adapter.
        exact_match: Share of right answers; -1 where none was generated.
        reference_exact_match: The same of the base, or of the adapter.
    """
    from components.core.steps import step
    from components.evaluate_model import task

    with step("evaluate_model"):
        result = task.run(
            task.Config.parse(options),
            eval_set=eval_set.path,
            dataset_digest=dataset_digest,
            base_uri=base_uri,
            scores=scores.path,
            report=report.path,
            adapter=adapter.path if adapter else "",
            merged_uri=merged_uri,
            adapter_scores=adapter_scores.path if adapter_scores else "",
        )
        for name, value in result._asdict().items():
            metrics.log_metric(name, str(value) if isinstance(value, str) else float(value))
        return result
