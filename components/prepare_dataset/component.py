"""prepare_dataset as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def prepare_dataset(
    listing_uri: str,
    tokenizer_uri: str,
    train_set: dsl.Output[dsl.Dataset],
    eval_set: dsl.Output[dsl.Dataset],
    rejected: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    data_key: str = "",
    max_length: int = 1024,
    options: str = "{}",
) -> NamedTuple("Prepared", dataset_digest=str, train_rows=int, eval_rows=int, rejected_rows=int, duplicate_rows=int):
    """Turn the listed data into token ids and labels, and account for every row.

    Args:
        listing_uri: Listing of the data, as plan_run wrote it.
        tokenizer_uri: Folder of the base model's tokenizer.
        train_set: Tokenised rows to train on, a Parquet file.
        eval_set: Tokenised rows to evaluate on, a Parquet file.
        rejected: File, line and reason of each row that cannot be used, a JSONL file.
        report: What was kept and dropped, and samples as the model sees them.
        data_key: Names what comes out; finished work of this key is copied. Empty does the work anew.
        max_length: Longest conversation in tokens.
        options: Further options, a JSON object.

    Returns:
        dataset_digest: Names what came out by content.
        train_rows: Rows to train on.
        eval_rows: Rows to evaluate on.
        rejected_rows: Rows that cannot be used.
        duplicate_rows: Rows left out because they stand elsewhere too.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.prepare_dataset import task

    with step("prepare_dataset"):
        return task.run(
            task.Config.parse(options, max_length=max_length),
            listing_uri=listing_uri,
            tokenizer_uri=tokenizer_uri,
            train_set=train_set.path,
            eval_set=eval_set.path,
            rejected=rejected.path,
            report=report.path,
            data_key=data_key,
        )
