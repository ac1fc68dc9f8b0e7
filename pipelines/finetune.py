"""The pipeline: from a base model and data to a registered model."""

from kfp import dsl

from qlora_pipelines.components.dequantize_and_merge.component import dequantize_and_merge
from qlora_pipelines.components.evaluate_model.component import evaluate_model
from qlora_pipelines.components.notify.component import notify
from qlora_pipelines.components.plan_run.component import plan_run
from qlora_pipelines.components.prepare_dataset.component import prepare_dataset
from qlora_pipelines.components.register_model.component import register_model
from qlora_pipelines.components.stage_base_model.component import stage_base_model
from qlora_pipelines.components.train_qlora.component import train_qlora
from qlora_pipelines.pipelines.placement import Pool, place

NAME, DISPLAY_NAME = "qlora-finetune", "QLoRA fine-tuning"


@dsl.pipeline(name=NAME, display_name=DISPLAY_NAME)
def finetune(
    base_model: str,
    dataset_uri: str,
    model_name: str,
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
):
    """Fine-tune a language model with QLoRA, evaluate it, merge it and register it in MLflow.

    Args:
        base_model: Folder, prefix in a bucket (s3://, gs://, az://) or Hugging Face id of the base model.
        dataset_uri: Training data, a file, a folder or a prefix in a bucket.
        model_name: Name of the registered model in MLflow.
        base_revision: Branch, tag or commit of a Hugging Face model; empty is main.
        eval_dataset_uri: Evaluation data; empty holds out a share of the training data.
        max_length: Longest conversation in tokens.
        num_train_epochs: Passes over the training rows.
        learning_rate: Peak learning rate.
        lora_r: Rank of the adapter.
        seed: Seed of order, initialisation and dropout.
        gpu_memory_gib: Memory of the GPU that the run will get, in GiB; 0 is not checked.
        options: All other options, a JSON object by step.
        accelerator: Kubernetes resource that counts GPUs; the type of GPU is chosen by node_selector.
        gpu_count: GPUs of the training pod, one process each, and evaluation takes one; 0 runs both on the CPU.
        node_selector: Labels of the nodes of training and evaluation, a JSON object.
        tolerations: Tolerations besides that of nvidia.com/gpu, a JSON list.
        cpu: Cores of training and of evaluation.
        memory: Memory of training and of evaluation, as Kubernetes writes it, such as 32Gi.
        training_key: Set by qlora trigger, the key that the run must turn out to have.
        claim: Set by qlora trigger, of several runs with this training_key one goes on.
    """
    # Tell people how the run ended, whatever happens inside.
    told = place(
        notify(
            model_name=model_name,
            run_name=dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
        ).set_display_name("notify")
    )
    with dsl.ExitHandler(told, "fine-tuning"):
        # Plan: check all that the run will reach for, and fix what could change under a name.
        plan = place(
            plan_run(
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
                training_key=training_key,
                claim=claim,
                run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            ).set_display_name("plan")
        ).outputs
        pool = Pool(**{name: plan[name] for name in Pool.__annotations__})

        # Prepare: the base model into the store, the data into tokens. The two run side by side.
        base = place(
            stage_base_model(base_model=base_model, base_revision=plan["base_revision"]).set_display_name("stage-base")
        ).outputs
        data = place(
            prepare_dataset(
                listing_uri=plan["listing_uri"],
                tokenizer_uri=plan["tokenizer_uri"],
                data_key=plan["data_key"],
                max_length=max_length,
                options=plan["prepare_options"],
            ).set_display_name("prepare-data"),
            cached=True,
        ).outputs

        # Train the adapter on the quantised base.
        trained = place(
            train_qlora(
                train_set=data["train_set"],
                dataset_digest=data["dataset_digest"],
                base_uri=base["base_uri"],
                base_revision=plan["base_revision"],
                training_key=plan["training_key"],
                num_train_epochs=num_train_epochs,
                learning_rate=learning_rate,
                lora_r=lora_r,
                seed=seed,
                tokenizer_uri=plan["tokenizer_uri"],
                planned_gpu_mib=plan["planned_gpu_mib"],
                planned_host_mib=plan["planned_host_mib"],
                options=plan["train_options"],
            ).set_display_name("train"),
            pool,
            cached=True,
        ).outputs

        # Evaluate the adapter: better than the base, and no worse than the champion?
        tuned = place(
            evaluate_model(
                eval_set=data["eval_set"],
                dataset_digest=data["dataset_digest"],
                base_uri=base["base_uri"],
                adapter=trained["adapter"],
                adapter_digest=trained["adapter_digest"],
                model_name=model_name,
                champion_version=plan["champion_version"],
                model_key=plan["training_key"],
                options=plan["evaluate_options"],
            ).set_display_name("evaluate-tuned"),
            pool,
            cached=True,
        ).outputs

        with dsl.If(tuned["passed"] == True, "tuned beats base"):  # noqa: E712, a condition of the pipeline
            # Merge the adapter into the base.
            merged = place(
                dequantize_and_merge(
                    adapter=trained["adapter"],
                    adapter_digest=trained["adapter_digest"],
                    base_uri=base["base_uri"],
                    base_revision=plan["base_revision"],
                    merge_key=plan["merge_key"],
                    recommended_base=tuned["merge_base"],
                    options=plan["merge_options"],
                ).set_display_name("merge")
            ).outputs

            # Evaluate the merged model: did the merge lose anything?
            judged = place(
                evaluate_model(
                    eval_set=data["eval_set"],
                    dataset_digest=data["dataset_digest"],
                    base_uri=base["base_uri"],
                    merged_uri=merged["merged_uri"],
                    merged_digest=merged["merged_digest"],
                    adapter_scores=tuned["scores"],
                    model_key=plan["merge_key"],
                    options=plan["evaluate_options"],
                ).set_display_name("evaluate-merged"),
                pool,
                cached=True,
            ).outputs

            with dsl.If(judged["passed"] == True, "merge lost nothing"):  # noqa: E712
                # Register the merged model in MLflow, with all evidence for it.
                registered = register_model(
                    model_name=model_name,
                    merged_uri=merged["merged_uri"],
                    merged_digest=merged["merged_digest"],
                    merge_key=plan["merge_key"],
                    adapter_uri=trained["adapter_uri"],
                    adapter_digest=trained["adapter_digest"],
                    champion_version=plan["champion_version"],
                    run_config=plan["run_config"],
                    listing_uri=plan["listing_uri"],
                    tuned_figures=tuned["figures"],
                    merged_figures=judged["figures"],
                    base_exact_match=tuned["reference_exact_match"],
                    pipeline_run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
                    plan_report=plan["report"],
                    data_report=data["report"],
                    training_report=trained["report"],
                    tuned_report=tuned["report"],
                    merged_report=judged["report"],
                )
                place(registered.set_display_name("register"))
