"""train_qlora as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CUDA, install_kfp_package=False)
def train_qlora(
    train_set: dsl.Input[dsl.Dataset],
    dataset_digest: str,
    base_uri: str,
    base_revision: str,
    training_key: str,
    adapter: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    num_train_epochs: float = 1.0,
    learning_rate: float = 0.0002,
    lora_r: int = 16,
    seed: int = 42,
    tokenizer_uri: str = "",
    planned_gpu_mib: int = 0,
    planned_host_mib: int = 0,
    options: str = "{}",
) -> NamedTuple(
    "Trained", first_loss=float, final_loss=float, steps=int, peak_mib=int, adapter_uri=str, adapter_digest=str
):
    """Train a LoRA adapter on the base model in NF4.

    Args:
        train_set: Tokenised rows from prepare_dataset.
        dataset_digest: What prepare_dataset said it made; checked before training.
        base_uri: Folder of the base model.
        base_revision: Commit, or digest of the base model's files; kept with the adapter.
        training_key: Names the adapter; a finished one of this key is returned at once.
        adapter: Folder with the adapter as peft reads it, tokenizer and manifest.
        report: Loss curve and options.
        num_train_epochs: Passes over the training rows.
        learning_rate: Peak learning rate.
        lora_r: Rank of the adapter.
        seed: Seed of order, initialisation and dropout.
        tokenizer_uri: Folder of the tokenizer that made the rows, as plan_run keeps it; empty is the base model's.
        planned_gpu_mib: Memory that plan_run said training needs on a GPU, for the report; 0 is not known.
        planned_host_mib: The same where there is no GPU.
        options: Further options, a JSON object.

    Returns:
        first_loss: Mean loss over the supervised tokens of the first logged steps.
        final_loss: The same over the last logged steps.
        steps: Optimiser steps made.
        peak_mib: Peak memory in MiB, on the GPU or else of the process.
        adapter_uri: Where the adapter is in the store.
        adapter_digest: SHA-256 of its manifest, which lists every file; later steps check what they read against it.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.train_qlora import task

    with step("train_qlora"):
        return task.run(
            task.Config.parse(
                options, num_train_epochs=num_train_epochs, learning_rate=learning_rate, lora_r=lora_r, seed=seed
            ),
            train_set=train_set.path,
            dataset_digest=dataset_digest,
            base_uri=base_uri,
            base_revision=base_revision,
            training_key=training_key,
            adapter=adapter.path,
            report=report.path,
            tokenizer_uri=tokenizer_uri,
            planned_gpu_mib=planned_gpu_mib,
            planned_host_mib=planned_host_mib,
        )
