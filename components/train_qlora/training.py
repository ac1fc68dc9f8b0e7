"""One training process: loads the base in 4 bit, trains the adapter on packed rows, writes checkpoints on the way."""

import dataclasses
import importlib.util
import math
import os
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.data import packing, tokenized
from qlora_pipelines.components.core.errors import InputError
from qlora_pipelines.components.core.models import loading, lora, model_files, packed_attention, quantization
from qlora_pipelines.components.core.models.quantization import Quantization
from qlora_pipelines.components.core.runtime import load_libraries, log
from qlora_pipelines.components.train_qlora import launch, memory, watchdog
from qlora_pipelines.components.train_qlora.checkpoints import Checkpoints
from qlora_pipelines.components.train_qlora.mlflow_run import MlflowRun


@dataclasses.dataclass(frozen=True)
class Job:
    """What a training process needs to know: options, the prepared set, the base, and where results go.

    `base` is a folder, `base_uri` where it came from, `tokenizer` the folder of the run's tokenizer. `scratch` is one
    folder for all processes. `resumed` is the step of the checkpoint to resume from and its folder; None: from the
    start.
    """

    config: TrainConfig
    train_set: str
    dataset_digest: str
    base: str
    base_uri: str
    tokenizer: str
    output: str
    scratch: str
    training_key: str
    checkpoints: Checkpoints
    resumed: tuple[int, Path] | None
    planned_gpu_mib: int
    planned_host_mib: int


@dataclasses.dataclass(frozen=True)
class Trained:
    """Each step's loss in nats per supervised token, digests of the quantised weights, peak memory in MiB, device."""

    losses: list[float]
    digests: dict[str, str]
    peak_mib: int
    device: str


def train(job: Job) -> Trained:
    """Trains to the last step and writes the adapter.

    Raises:
        InputError: too few or too old GPUs, data of another tokenizer or without a supervised token, a name that
            matches no layer, a loss that is no number, no memory left.
        TransientError: the disk is full.
    """
    config = job.config
    with (
        watchdog.running(config.setup_limit_minutes),
        memory.explain(config, job.planned_gpu_mib, job.planned_host_mib),
    ):
        _limit_kernel_caches()
        load_libraries("trl.trainer.sft_trainer")
        launch.check_gpus(config.processes, config.compute_dtype)
        from peft.helpers import disable_input_dtype_casting
        from transformers import set_seed

        base = Path(job.base)
        tokenizer = loading.load_tokenizer(Path(job.tokenizer))
        samples = tokenized.read(job.train_set, job.dataset_digest)
        made_by = tokenized.tokenizer_digest(job.train_set)
        if made_by and made_by != loading.tokenizer_digest(tokenizer):
            raise InputError(
                f"data set {job.train_set} was tokenised for another tokenizer than that of {job.tokenizer}: prepare"
                " it again"
            )
        encoded = [sample.encoded for sample in samples if sample.encoded.supervised]
        if not encoded:
            raise InputError(f"data set {job.train_set} has no supervised token: nothing would be learnt")
        rows = packing.rows(encoded, config.batch_tokens if config.packing else 1)
        set_seed(config.seed)
        _log(f"loading {base.name} in {config.quant_type.upper()}")
        model = loading.load_quantized(base, Quantization.of(config), for_sharding=config.fsdp)
        digests = quantization.digests(model)
        if config.packing:
            packed_attention.enable(model, config.attn_implementation)
        per_step = config.gradient_accumulation_steps * config.processes
        steps = config.max_steps or math.ceil(config.num_train_epochs * math.ceil(len(rows) / per_step))
        done, checkpoint = job.resumed or (0, None)
        with MlflowRun(job.training_key, config.key_fields(), muted=launch.rank() > 0) as run:
            with lora.targets_as_named():
                trainer = _trainer(job, model, tokenizer, rows, steps, run)
            tokens = sum(len(item.input_ids) for item in encoded)
            full = f", {tokens / len(rows) / config.batch_tokens:.0%} full" if config.packing else ""
            _log(f"{len(encoded)} conversations in {len(rows)} rows{full}")
            trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
            resumed = f", going on after step {done}" if done else ""
            _log(f"training {trainable:,} parameters for {steps} steps{resumed}")
            if config.warmup_steps >= 1 and (rise := int(config.warmup_steps)) >= steps:
                _log(f"warmup_steps is {rise} and training has {steps}: the rate reaches {steps / (rise + 1):.0%} of"
                     f" learning_rate; give fewer, or a fraction")  # fmt: skip
            # Autocast casts inputs. peft would cast each layer's to float32 first: it sees the autocast of CUDA only.
            with disable_input_dtype_casting(trainer.model):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.state.global_step < steps:
                raise InputError(f"training ended at step {trainer.state.global_step} of {steps}")
            watchdog.start(config.step_limit_minutes)
            trainer.save_adapter(job.output, job.base_uri)
            if launch.rank() == 0:
                model_files.copy_tokenizer(Path(job.tokenizer), Path(job.output))
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        return Trained(losses, digests, memory.peak_mib(), loading.device())


def _trainer(job: Job, model: Any, tokenizer: Any, rows: Any, steps: int, run: MlflowRun) -> Any:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import SFTConfig

    from qlora_pipelines.components.train_qlora.callbacks import CheckpointCallback, ProgressCallback
    from qlora_pipelines.components.train_qlora.trainer import PackedTrainer

    config = job.config
    on_gpu = loading.on_gpu()
    half = config.compute_dtype == "float16"
    if half and not on_gpu:
        raise InputError("compute_dtype float16 needs a GPU; a CPU takes bfloat16")
    liger = on_gpu and importlib.util.find_spec("liger_kernel") is not None
    trainer = PackedTrainer(
        model=model,
        args=SFTConfig(
            output_dir=job.scratch,
            max_steps=steps,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler_type,
            # The rate rises linearly: Adam's second moments rest on few gradients at first, so its early updates vary
            # widely (Liu et al. 2020, On the Variance of the Adaptive Learning Rate and Beyond). Below 1 this is a
            # fraction of all steps, rounded up; from 1 on, steps (TrainingArguments.get_warmup_steps).
            # PackedTrainer.create_scheduler has no step at 0.
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            gradient_checkpointing=config.gradient_checkpointing,
            optim=_optim(config, on_gpu),
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
            save_strategy="no",  # CheckpointCallback decides
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=packing.collate,
        processing_class=tokenizer,
        peft_config=lora.config(config, model),
        sharded=config.fsdp,
    )
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            # TRL casts the adapter to bfloat16. Its 8 significant bits lose an update smaller than a 256th of a weight,
            # so what is trained is kept in float32 (Micikevicius et al. 2018, Mixed Precision Training, section 3.1);
            # the products still run in 16 bit under autocast.
            parameter.data = parameter.data.to(torch.float32)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ProgressCallback(trainer, steps, job.resumed[0] if job.resumed else 0, run))
    trainer.add_callback(CheckpointCallback(trainer, config, job.checkpoints))
    return trainer


def _optim(config: TrainConfig, on_gpu: bool) -> str:
    """The optimiser's name for transformers; where there is no GPU, its unpaged form."""
    if on_gpu:
        return config.optim
    _log(f"no GPU: {config.optim.removeprefix('paged_')} stays in the host's memory, nothing is paged")
    return "adamw_torch" if config.optim == "paged_adamw_32bit" else "adamw_bnb_8bit"


def _log(message: str) -> None:
    """One line, from rank 0."""
    if launch.rank() == 0:
        log(message)


def _limit_kernel_caches() -> None:
    """Limits how many kernels oneDNN keeps on a CPU, each with its scratch memory; to be called before any product.

    It keeps one per shape, and packed rows differ in length by a few tokens, so nearly every step brings new shapes.
    With the default of 1024 kernels memory grew by a gigabyte in 40 steps of the demo. There are two caches, PyTorch's
    and the library's own (oneDNN's developer guide, Primitive Cache); both drop what was used least recently.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
