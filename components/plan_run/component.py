"""plan_run as the pipeline sees it."""

from typing import NamedTuple

from kfp import dsl

from qlora_pipelines.components import images


@dsl.component(base_image=images.CPU, install_kfp_package=False)
def plan_run(
    base_model: str,
    dataset_uri: str,
    model_name: str,
    report: dsl.Output[dsl.HTML],
    base_revision: str = "",
    eval_dataset_uri: str = "",
    max_length: int = 1024,
    num_train_epochs: float = 1.0,
    learning_rate: float = 0.0002,
    lora_r: int = 16,
    seed: int = 42,
    gpu_memory_gib: float = 0.0,
    options: str = "{}",
    accelerator: str = "nvidia.com/gpu",
    gpu_count: str = "1",
    node_selector: dict = {},  # noqa: B006, kfp takes no None
    tolerations: list = [],  # noqa: B006
    cpu: str = "4",
    memory: str = "32Gi",
    training_key: str = "",
    claim: str = "",
    run_id: str = "",
) -> NamedTuple(
    "Plan",
    base_revision=str,
    tokenizer_uri=str,
    listing_uri=str,
    data_digest=str,
    champion_version=str,
    data_key=str,
    training_key=str,
    merge_key=str,
    prepare_options=str,
    train_options=str,
    evaluate_options=str,
    merge_options=str,
    run_config=str,
    planned_gpu_mib=int,
    planned_host_mib=int,
    accelerator=str,
    gpu_count=str,
    node_selector=dict,
    tolerations=list,
    cpu=str,
    memory=str,
):
    """Check a run before a GPU is taken, and fix what could change under its name.

    Args:
        base_model: Folder, prefix in a bucket (s3://, gs://, az://) or Hugging Face id of the base model.
        dataset_uri: Training data, a file, a folder or a prefix in a bucket.
        model_name: Name of the registered model in MLflow.
        report: What the run works from.
        base_revision: Branch, tag or commit of a Hugging Face model; empty is main.
        eval_dataset_uri: Evaluation data; empty holds out a share of the training data.
        max_length: Longest conversation in tokens.
        num_train_epochs: Passes over the training rows.
        learning_rate: Peak learning rate.
        lora_r: Rank of the adapter.
        seed: Seed of order, initialisation and dropout.
        gpu_memory_gib: Memory of the GPU that the run will get, in GiB; 0 is not checked.
        options: All other options, a JSON object by step.
        accelerator: Kubernetes resource that counts GPUs.
        gpu_count: GPUs of the training pod; 0 runs training and evaluation on the CPU.
        node_selector: Labels of the nodes of training and evaluation, a JSON object.
        tolerations: Tolerations besides that of nvidia.com/gpu, a JSON list.
        cpu: Cores of training and of evaluation.
        memory: Memory of training and of evaluation, as Kubernetes writes it, such as 32Gi.
        training_key: Key that the run must turn out to have; empty is not checked.
        claim: Of several runs with this training_key one passes; empty lets this one.
        run_id: Id of the Kubeflow run, for its claim.

    Returns:
        base_revision: Commit, or digest of the base model's files.
        tokenizer_uri: Where the store keeps the base model's tokenizer.
        listing_uri: Where the store keeps the data's listing.
        data_digest: Names the data by content.
        champion_version: Version that the model has to match, or empty: today's champion, or if that came out of this
            very training what it was compared with.
        data_key: Names what prepare_dataset will make.
        training_key: Names the adapter that train_qlora will make.
        merge_key: Names the merged model.
        prepare_options: Options of prepare_dataset, as JSON.
        train_options: Options of train_qlora, as JSON.
        evaluate_options: Options of evaluate_model, as JSON.
        merge_options: Options of dequantize_and_merge, as JSON.
        run_config: The run's options that are not the defaults, the base's revision fixed, as JSON.
        planned_gpu_mib: Memory that training needs on a GPU, in MiB; 0 is not known.
        planned_host_mib: Memory that training needs where there is no GPU, in MiB; 0 is not known.
        accelerator: Resource that the pods of training and evaluation ask for; empty with gpu_count 0.
        gpu_count: How many the training pod asks for.
        node_selector: Their nodes' labels, checked.
        tolerations: Their tolerations, that of nvidia.com/gpu among them unless gpu_count is 0.
        cpu: Their cores, checked.
        memory: Their memory, checked.
    """
    from qlora_pipelines.components.core.step import step
    from qlora_pipelines.components.plan_run import task

    with step("plan_run"):
        config = task.Config.parse(
            base_model=base_model,
            base_revision=base_revision,
            dataset_uri=dataset_uri,
            eval_dataset_uri=eval_dataset_uri,
            model_name=model_name,
            max_length=max_length,
            num_train_epochs=num_train_epochs,
            learning_rate=learning_rate,
            lora_r=lora_r,
            seed=seed,
            gpu_memory_gib=gpu_memory_gib,
            options=options,
            accelerator=accelerator,
            gpu_count=gpu_count,
            node_selector=node_selector,
            tolerations=tolerations,
            cpu=cpu,
            memory=memory,
        )
        return task.run(config, report=report.path, training_key=training_key, claim=claim, run_id=run_id)
