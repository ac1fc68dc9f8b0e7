"""stage_base_model as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def stage_base_model(
    base_model: str,
    base_revision: str = "",
) -> NamedTuple("Staged", base_uri=str):
    """Copy the base model into the store, once per revision.

    Args:
        base_model: Folder, prefix in a bucket (s3://, gs://, az://) or Hugging Face id of the base model.
        base_revision: Commit, or digest of the files, as plan_run found it.

    Returns:
        base_uri: Where the base model is.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.stage_base_model import task

    with step("stage_base_model"):
        return task.run(task.Config.parse(base_model=base_model, base_revision=base_revision))
