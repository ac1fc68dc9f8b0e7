"""One training process: loads the base in 4 bit, trains the adapter on packed rows, writes checkpoints as it goes."""

import dataclasses
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import packing, tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, lora, packed_attention, quantization
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.runtime import load_libraries, log
from qlora_pipelines.components.train_qlora import launch, memory, watchdog
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun


@dataclasses.dataclass(frozen=True)
class Job:
    """What a training process needs to know: options, the prepared set, the base, and where results go.

    `base` is a folder, `base_uri` where it came from. `scratch` is one folder for all processes. `resumed` is the step
    of the checkpoint to go on from and its folder; None: from the start.
    """

    config: TrainConfig
    train_set: str
    dataset_digest: str
    base: str
    base_uri: str
    output: str
    scratch: str
    training_key: str
    checkpoints: Checkpoints
    resumed: tuple[int, Path] | None
    planned_mib: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """Each step's loss in nats a supervised token, digests of the quantised weights, and the peak of memory in MiB."""

    losses: list[float]
    digests: dict[str, str]
    peak_mib: int


def train(job: Job) -> Trained:
    """Trains to the last step and writes the adapter.

    Raises:
        InputError: data of another tokenizer, a name that matches no layer, a loss that is no number, no memory left.
        TransientError: the disk is full.
    """
    with watchdog.watched(), memory.explained(job.config, job.planned_mib):
        watchdog.allow(job.config.setup_limit_minutes)
        return _train(job)


def _train(job: Job) -> Trained:
    config = job.config
    _limit_caches()
    load_libraries("trl.trainer.sft_trainer")
    from peft.helpers import disable_input_dtype_casting
    from transformers import set_seed

    base = Path(job.base)
    tokenizer = loading.load_tokenizer(base)
    samples = tokenized.read(job.train_set, job.dataset_digest)
    _check_tokenizer(job.train_set, tokenizer, base)
    encoded = [sample.encoded for sample in samples if sample.encoded.supervised]
    rows = packing.rows(encoded, config.batch_tokens if config.packing else 1)
    set_seed(config.seed)
    _log(f"loading {base.name} in {config.quant_type.upper()}")
    model = loading.load_quantized(base, Quantization.of(config), for_sharding=config.fsdp)
    digests = quantization.digests(model)
    if config.packing:
        packed_attention.enable(model, config.attn_implementation)
    steps = _steps(config, len(rows))
    run = MlflowRun(job.training_key, config.key_fields(), muted=launch.rank() > 0)
    trainer = _trainer(config, model, tokenizer, rows, steps, job.scratch)
    done, checkpoint = job.resumed or (0, None)
    _watch(trainer, job, steps, done, run)
    _say(config, trainer.model, len(encoded), sum(len(item.input_ids) for item in encoded), len(rows), steps, done)
    try:
        # Autocast does it; peft, which sees that of CUDA only, would copy each layer's input to float32 first.
        with disable_input_dtype_casting(trainer.model):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if trainer.state.global_step < steps:
            raise InputError(f"training ended at step {trainer.state.global_step} of {steps}")
    except BaseException:
        run.end(finished=False)
        raise
    watchdog.allow(config.step_limit_minutes)
    trainer.save_adapter(job.output, job.base_uri)
    if launch.rank() == 0:
        tokenizer.save_pretrained(job.output)
    run.end(finished=True)
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return Trained(losses, digests, memory.peak_mib())


def _steps(config: TrainConfig, rows: int) -> int:
    per_step = config.gradient_accumulation_steps * config.processes
    return config.max_steps or math.ceil(config.num_train_epochs * math.ceil(rows / per_step))


def _check_tokenizer(train_set: str, tokenizer: Any, base: Path) -> None:
    made_by = tokenized.tokenizer_digest(train_set)
    if made_by and made_by != loading.tokenizer_digest(tokenizer):
        raise InputError(
            f"data set {train_set} was tokenised for another tokenizer than that of {base}: prepare it anew"
        )


def _trainer(config: TrainConfig, model: Any, tokenizer: Any, rows: Any, steps: int, scratch: str) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from qlora_pipelines.components.train_qlora.trainer import PackedTrainer

    on_gpu = torch.cuda.is_available()
    half = config.compute_dtype == "float16"
    if half and not on_gpu:
        raise InputError("compute_dtype float16 needs a GPU; a CPU takes bfloat16")
    liger = on_gpu and importlib.util.find_spec("liger_kernel") is not None
    trainer = PackedTrainer(
        model=model,
        args=SFTConfig(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_checkpointing=config.gradient_checkpointing,
            optim=_optimizer(config, on_gpu),
            bf16=not half,
            fp16=half,
            use_cpu=not on_gpu,
            ddp_backend=None if config.processes == 1 else "nccl" if on_gpu else "gloo",
            ddp_find_unused_parameters=False,
            use_liger_kernel=liger,
            liger_kernel_config={"fused_linear_cross_entropy": False} if liger else None,  # the head is our own
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            max_length=None,
            seed=config.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,  # by default a loss that is no number is logged as 0
            save_strategy="no",  # callbacks.Save says when
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=packing.collate,
        processing_class=tokenizer,
        peft_config=lora.config(config, model),
        sharded=config.fsdp,
    )
    _in_full_precision(trainer.model)
    return trainer


def _optimizer(config: TrainConfig, on_gpu: bool) -> str:
    """The name that transformers has for it."""
    if on_gpu:
        return config.optim
    _log(f"no GPU: {config.optim.removeprefix('paged_')} stays in the host's memory, nothing is paged")
    return "adamw_torch" if config.optim == "paged_adamw_32bit" else "adamw_bnb_8bit"


def _watch(trainer: Any, job: Job, steps: int, done: int, run: MlflowRun) -> None:
    from transformers import PrinterCallback

    from qlora_pipelines.components.train_qlora.callbacks import Save, Tell

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Tell(trainer, steps, done, run))
    trainer.add_callback(Save(trainer, job.config, job.checkpoints))


def _say(config: TrainConfig, model: Any, conversations: int, tokens: int, rows: int, steps: int, done: int) -> None:
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    full = f", {tokens / rows / config.batch_tokens:.0%} full" if config.packing else ""
    _log(f"{conversations} conversations in {rows} rows{full}")
    went_on = f", going on after step {done}" if done else ""
    _log(f"training {trainable:,} parameters for {steps} steps{went_on}")


def _log(message: str) -> None:
    """One line, from the first process."""
    if launch.rank() == 0:
        log(message)


def _limit_caches() -> None:
    """Keeps oneDNN from caching a kernel, with its scratch memory, for each shape it meets on a CPU.

    Packed rows differ in length by a few tokens, so nearly each step brings new shapes: with the default of 1024
    kernels memory grows by a gigabyte in 40 steps of the demo. It has to be said before the first product.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # PyTorch's
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # the library's own


def _in_full_precision(model: Any) -> None:
    """Keeps the adapter in float32; the products still run in 16 bit.

    TRL casts it to bfloat16, whose eight significant bits lose an update smaller than a 256th of a weight.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
