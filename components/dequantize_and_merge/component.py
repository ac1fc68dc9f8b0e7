"""dequantize_and_merge as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CUDA, install_kfp_package=False)
def dequantize_and_merge(
    adapter: dsl.Input[dsl.Model],
    base_uri: str,
    base_revision: str,
    adapter_digest: str,
    merge_key: str,
    recommended_base: str = "",
    options: str = "{}",
) -> NamedTuple("Merged", merged_uri=str, merged_digest=str):
    """Merge the adapter into the base, tensor by tensor, as an ordinary 16-bit model.

    Args:
        adapter: Folder of the trained adapter.
        base_uri: Folder of the base model.
        base_revision: Commit, or digest of the base model's files.
        adapter_digest: The sha256 of the adapter's manifest, which train_qlora returned; checked.
        merge_key: Names the merged model; a finished one of this key is returned at once.
        recommended_base: The base that evaluation found better, dequantized or original; read where merge_base is auto.
        options: Further options, a JSON object.

    Returns:
        merged_uri: Where the merged model is.
        merged_digest: The sha256 of its manifest, which lists every file; later steps check what they read against it.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.dequantize_and_merge import task

    with step("dequantize_and_merge"):
        return task.run(
            task.Config.parse(options),
            base_uri=base_uri,
            base_revision=base_revision,
            adapter=adapter.path,
            adapter_digest=adapter_digest,
            merge_key=merge_key,
            recommended_base=recommended_base,
        )
