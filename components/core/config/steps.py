"""Every option of every step, one frozen class per step.

These classes are the only list of a step's options: the components' defaults, the command line and the docs are checked
against them or made from them. They are in one place because `plan_run` validates a whole run before a GPU is taken,
and steps do not import one another.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from qlora_pipelines.components.core.config.base import Int, StepConfig, not_in_key

Column = Literal[
    "messages", "conversations", "prompt", "completion", "instruction", "input", "output", "history", "text", "system",
    "tools", "group", "slice",
]  # fmt: skip
"""The columns a row may have, whatever its form."""


class StageConfig(StepConfig):
    """stage_base_model."""

    base_model: str = Field(description="folder or Hugging Face id of the base model", min_length=1)
    base_revision: str = Field("", description="commit of the base model; empty: as plan_run found it")


class PrepareConfig(StepConfig):
    """prepare_dataset."""

    max_length: Int = Field(1024, ge=16, description="longest conversation, in tokens; longer ones are cut at the end")
    eval_share: float = Field(
        0.1, gt=0, lt=1, description="share of rows held out by content hash where no evaluation data is given"
    )
    max_rejected_share: float = Field(
        0.01, ge=0, le=1, description="share of unusable rows that stops the run; duplicates do not count"
    )
    form: Literal["auto", "messages", "sharegpt", "prompt_completion", "alpaca", "text"] = Field(
        "auto", description="what the columns mean; auto: found out from the first rows of each file"
    )
    columns: dict[Column, str] = Field({}, description="the data's own column names, by the names known here")
    extra_columns: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="further columns to hand on into the scores and the evaluation's report; no model sees them"
    )
    supervise: Literal["all", "last"] = Field("all", description="all answers of a conversation, or only the last")
    consecutive_turns: Literal["reject", "join", "keep"] = Field(
        "reject", description="rows in which one role speaks twice in a row: reject them, join such turns with an empty"
        " line, or keep them as the chat template takes them, also where the assistant speaks first",
    )  # fmt: skip
    near_duplicate_threshold: float = Field(
        0.75,
        ge=0,
        le=1,
        description="Jaccard similarity of 5-word runs from which rows whose answers are the same too"
        " are duplicates; 0: exact only",
    )
    decontaminate_words: Int = Field(
        0, ge=0, le=100, description="drop training rows that share so many words in a row with evaluation; 0: none"
    )
    chat_template: str = not_in_key(
        "", description="chat template in place of the base's, for a base that has none: alpaca, chatml, gemma, llama3,"
        " mistral, or the address of a Jinja file; the keys have its content, and the model is saved with it"
    )  # fmt: skip
    processes: Int = not_in_key(1, ge=1, le=64, description="processes to prepare with")


class TrainConfig(StepConfig):
    """train_qlora. What transformers' TrainingArguments has too is named and meant as there."""

    renamed: ClassVar[dict[str, str]] = {
        "optimizer": "optim",
        "lr_schedule": "lr_scheduler_type",
        "warmup_share": "warmup_steps",
        "epochs": "num_train_epochs",
        "attention": "attn_implementation",
        "checkpoint_steps": "save_steps",
        "checkpoint_minutes": "save_minutes",
        "keep_checkpoints": "save_total_limit",
    }

    # Defaults are the QLoRA paper's where it has them (Dettmers et al. 2023): NF4 and double quantisation (section 3),
    # adapters on all linear layers (section 4), a learning rate of 2e-4 (up to 13 billion parameters; appendix B).
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit data type of the base")
    double_quant: bool = Field(True, description="quantise the scales too: 0.37 bits less per parameter")
    compute_dtype: Literal["bfloat16", "float16"] = Field(
        "bfloat16", description="dtype of the products; float16 for GPUs without bfloat16, such as T4 and V100"
    )
    lora_r: Int = Field(16, ge=1, le=1024, description="rank of the adapter")
    lora_alpha: Int = Field(0, ge=0, description="scale of the adapter; 0: twice the rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    use_rslora: bool = Field(False, description="divide alpha by the root of the rank, not by the rank")
    use_dora: bool = Field(False, description="train each weight's magnitude too: slower, sometimes better")
    target_modules: str = Field(
        "all-linear", min_length=1, description="linear layers to adapt: names separated by commas, or all-linear"
    )
    modules_to_save: str = Field(
        "", description="modules to train in full next to the adapter, such as embed_tokens: names separated by commas"
    )
    optim: Literal["paged_adamw_32bit", "paged_adamw_8bit"] = Field(
        "paged_adamw_32bit", description="AdamW with 32-bit or 8-bit moments; paged where there is a GPU"
    )
    learning_rate: float = Field(2e-4, gt=0, le=0.1, description="peak learning rate")
    lr_scheduler_type: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls after its rise"
    )
    warmup_steps: float = Field(
        0.05, ge=0, description="steps over which the learning rate rises; below 1: that fraction of all steps"
    )
    num_train_epochs: float = Field(1.0, gt=0, description="passes over the training rows")
    max_steps: Int = Field(0, ge=0, description="optimiser steps; 0: as many as num_train_epochs makes")
    packing: bool | Literal["auto"] = Field(
        "auto", description="several conversations per row; false: one; auto: several where the base's layers allow it"
    )
    batch_tokens: Int = Field(
        2048, ge=16, description="tokens per forward pass: conversations are packed to this length, none is cut"
    )
    gradient_accumulation_steps: Int = Field(1, ge=1, description="forward passes per optimiser step")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")
    seed: Int = Field(42, ge=0, description="seed of order, initialisation and dropout")
    processes: Int = Field(1, ge=1, le=64, description="GPUs in the pod, with one training process each")
    fsdp: bool = Field(False, description="shard the base over the processes' GPUs: for one too large for a single GPU")
    use_cpu: bool = not_in_key(False, description="the CPU, even where there is a GPU; a run's gpu_count 0 sets it")
    attn_implementation: Literal["sdpa", "flash_attention_2"] = not_in_key(
        "sdpa", description="PyTorch's kernels, or on a GPU the flash-attn package"
    )
    gradient_checkpointing: bool = not_in_key(False, description="recompute activations: less memory, more time")
    save_steps: Int = not_in_key(100, ge=1, description="steps from one checkpoint to the next")
    save_minutes: float = not_in_key(10.0, gt=0, description="minutes after which there is a checkpoint anyway")
    save_total_limit: Int = not_in_key(2, ge=1, description="checkpoints to keep")
    setup_limit_minutes: float = not_in_key(60.0, gt=0, description="minutes in which training must have begun")
    step_limit_minutes: float = not_in_key(30.0, gt=0, description="minutes that a step or a checkpoint may take")
    max_restarts: Int = not_in_key(
        3, ge=0, description="restarts, in the pod, of training that died without a newer checkpoint; 0: none"
    )

    @model_validator(mode="after")
    def _check_fsdp(self) -> Self:
        if not self.fsdp:
            return self
        if self.processes == 1:
            raise ValueError("fsdp shards the base over several GPUs: set processes to their number")
        for option in ("use_dora", "modules_to_save"):
            if getattr(self, option):
                raise ValueError(
                    f"{option} and fsdp do not go together: it needs weights that fsdp shards; unset one of them"
                )
        if self.compute_dtype == "float16":
            raise ValueError("compute_dtype float16 and fsdp do not go together: take GPUs that have bfloat16")
        return self


class EvaluateConfig(StepConfig):
    """evaluate_model."""

    use_cpu: bool = not_in_key(False, description="the CPU, even where there is a GPU; a run's gpu_count 0 sets it")
    eval_batch_tokens: Int = not_in_key(
        2048, ge=16, description="tokens per forward pass in scoring, which rows are packed to"
    )
    eval_batch_size: Int = Field(16, ge=1, description="conversations answered at a time")
    generation_rows: Int = Field(64, ge=0, description="held-out rows answered by generation; 0: none")
    max_new_tokens: Int = Field(128, ge=1, description="longest generated answer, in tokens")
    answer_metrics: list[Literal["exact_match", "json_keys", "rouge_l", "chrf"]] = Field(
        ["exact_match"],
        min_length=1,
        description="marks for generated answers: exact_match, json_keys, rouge_l, chrf; by the first one the answers"
        " are compared with the champion's",
    )
    lm_eval_tasks: list[str] = Field(
        [], description="tasks of lm-eval, by name or as a task's YAML file, for the report; needs the extra lm-eval"
    )
    swapped_rows: Int = Field(
        64, ge=0, le=4096, description="held-out rows whose answer is also put after another row's question, where it"
        " must be less likely: else the model does not read what it is asked; 0: none",
    )  # fmt: skip
    baseline_messages: list[dict[str, str]] = Field(
        [],
        description="turns the base gets before each question, in place of the row's system message: schema and"
        " examples, for a fair comparison; empty: the rows as they are",
    )
    score_original: bool = Field(
        False, description="also score the adapter on the 16-bit base; if better there, it is merged into that"
    )
    confidence: float = Field(
        0.95, ge=0.8, le=0.999, description="gate: how sure it must be, of all slices together too"
    )
    min_improvement: float = Field(
        0.01, ge=0, description="gate: nats per token by which the tuned loss must be below the base's"
    )
    max_champion_loss: float = Field(
        0.01, ge=0, description="gate: nats per token, or bits per byte, by which the loss may be above the champion's"
    )
    max_slice_loss: float = Field(
        0.0, ge=0, description="gate: by how much a slice, or the answers, may be shown to have become worse"
    )
    max_merge_loss: float = Field(
        0.01, ge=0, description="gate: nats per token by which the merged loss may be above the adapter's"
    )


class MergeConfig(StepConfig):
    """dequantize_and_merge."""

    merge_base: Literal["auto", "dequantized", "original"] = Field(
        "auto",
        description="weights to merge into: as training saw them, the 16-bit originals, or what evaluation recommends",
    )
    max_shard_gb: float = Field(4.0, gt=0, lt=5, description="largest file of the merged model, in GB")


class RegisterConfig(StepConfig):
    """register_model."""

    model_name: str = Field(
        description="name of the registered model in MLflow", min_length=1, pattern=r"^[^/:@%\"'.\x00-\x1f]+$"
    )


class NotifyConfig(StepConfig):
    """notify."""

    timeout_seconds: float = Field(10.0, gt=0, le=60, description="seconds to wait for the webhook's answer")
    tries: Int = Field(4, ge=1, le=10, description="how often it is tried where it does not answer, or answers 5xx")


STEPS: dict[str, type[StepConfig]] = {
    "stage_base_model": StageConfig,
    "prepare_dataset": PrepareConfig,
    "train_qlora": TrainConfig,
    "evaluate_model": EvaluateConfig,
    "dequantize_and_merge": MergeConfig,
    "register_model": RegisterConfig,
    "notify": NotifyConfig,
}
OPTION_STEPS = ["prepare_dataset", "train_qlora", "evaluate_model", "dequantize_and_merge"]
"""The steps whose further options travel in a run's `options`."""
