"""QLoRA training: the base in NF4, a LoRA adapter on its linear layers, supervised fine-tuning through TRL."""

import dataclasses
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.core import attempts, attention, dataset, models, packing, quantization, storage
from components.core.config import TrainConfig
from components.core.quantization import Quantization
from components.core.report import Report
from components.core.steps import log

Config = TrainConfig


class Result(NamedTuple):
    """What came out.

    Mean loss over the supervised tokens of the first and of the last logged steps, the steps made, the most memory in
    use at a time, on the GPU or else in the process, and where the adapter lies in the store.
    """

    first_loss: float
    final_loss: float
    steps: int
    peak_mib: int
    adapter_uri: str


def run(
    config: TrainConfig,
    *,
    train_set: str,
    dataset_digest: str,
    base_uri: str,
    base_revision: str,
    training_key: str,
    adapter: str,
    report: str,
    planned_gpu_mib: int = 0,
    planned_host_mib: int = 0,
) -> Result:
    """Trains the adapter, or returns the one that this training_key already has.

    Args:
        config: the step's options.
        train_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        base_revision: commit, or digest of the base's files; kept with the adapter.
        training_key: names the adapter; it is kept in the store under this key.
        adapter: folder to write: peft's adapter, the tokenizer and a manifest.
        report: HTML page to write.
        planned_gpu_mib: memory that plan_run said training needs on a GPU; 0: not known.
        planned_host_mib: the same where there is no GPU.

    Raises:
        InputError: data of another digest, a target that matches no layer, a loss that is no number.
    """
    key_uri = storage.join(storage.root(), "adapters", training_key)
    finished = attempts.find(key_uri)
    if finished is None:
        samples = dataset.read(train_set, dataset_digest)
        with tempfile.TemporaryDirectory() as folder, attempts.attempt(key_uri) as attempt:
            base = storage.download(base_uri, Path(folder))
            losses, digests = _train(config, samples, base, attempt.folder)
            finished = attempt.commit(
                {
                    "training_key": training_key,
                    "base_uri": base_uri,
                    "base_revision": base_revision,
                    "dataset_digest": dataset_digest,
                    "config": config.model_dump(),
                    "quantization": dataclasses.asdict(Quantization.of(config)),
                    "quantised": digests,
                    "losses": losses,
                    "device": models.device(),
                    "peak_mib": _peak_mib(),
                }
            )
    else:
        log(f"this training is finished already: {finished.uri}")
    with tempfile.TemporaryDirectory() as folder:
        storage.upload(storage.download(finished.uri, Path(folder)), adapter)
    losses = finished.info["losses"]
    result = Result(losses[0][1], losses[-1][1], losses[-1][0], finished.info["peak_mib"], finished.uri)
    planned = planned_gpu_mib if finished.info["device"] == "cuda" else planned_host_mib
    memory = f"Memory at its peak: {result.peak_mib:,} MiB" + (f"; the plan said {planned:,}." if planned else ".")
    log(memory)
    _report(config, losses, result, memory, report)
    return result


def _peak_mib() -> int:
    """The most memory in use at a time so far: on the GPU, or of this process where there is none."""
    import resource

    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # the allocator keeps what it once took
        return round(int(total - free) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _train(
    config: TrainConfig, samples: list[dataset.Sample], base: Path, output: Path
) -> tuple[list[tuple[int, float]], dict[str, str]]:
    """Trains and saves; returns (step, loss) as logged, and the digests of the quantised weights."""
    _limit_caches()
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig

    from components.train_qlora.trainer import PackedTrainer, ShowProgress, without_printing

    models.check_folder(base)
    targets = models.check_targets(config.target_modules, models.linear_layers(base))
    tokenizer = models.load_tokenizer(base)
    set_seed(config.seed)
    log(f"loading {base.name} in NF4")
    model = models.load_quantized(base, Quantization.of(config))
    digests = quantization.digests(model)
    attention.use(model)
    encoded = [sample.encoded for sample in samples]
    rows = packing.rows(encoded, config.batch_tokens)
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(len(rows) / config.gradient_accumulation_steps))
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PackedTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=config.gradient_accumulation_steps,
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=math.ceil(config.warmup_share * steps),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                gradient_checkpointing=config.gradient_checkpointing,
                optim="paged_adamw_32bit" if torch.cuda.is_available() else "adamw_torch",
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                dataset_kwargs={"skip_prepare_dataset": True},
                remove_unused_columns=False,
                max_length=None,
                seed=config.seed,
                logging_steps=max(1, min(10, steps // 10)),
                logging_nan_inf_filter=False,  # by default a loss that is no number is logged as 0
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=packing.collate,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha or 2 * config.lora_r,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            callbacks=[ShowProgress(steps)],
        )
        without_printing(trainer)
        _in_full_precision(trainer.model)
        trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        tokens = sum(len(item.input_ids) for item in encoded)
        log(f"{len(encoded)} conversations in {len(rows)} rows, {tokens / len(rows) / config.batch_tokens:.0%} full")
        log(f"training {trainable:,} parameters for {steps} steps")
        trainer.train()
    losses = [(entry["step"], float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
    trainer.model.save_pretrained(str(output), safe_serialization=True)
    tokenizer.save_pretrained(str(output))
    return losses, digests


def _limit_caches() -> None:
    """Keeps oneDNN from caching a kernel, with its scratch memory, for each shape it meets on a CPU.

    Packed rows differ in length by a few tokens, so nearly each step brings new shapes: with the default of 1024 kernels
    memory grows by a gigabyte in 40 steps of the demo. It has to be said before the first product.
    """
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # PyTorch's
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")  # the library's own


def _in_full_precision(model: Any) -> None:
    """Keeps the adapter in float32; the products still run in bfloat16.

    TRL casts it to bfloat16, whose eight significant bits lose an update smaller than a 256th of a weight.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def _report(config: TrainConfig, losses: list[tuple[int, float]], result: Result, memory: str, path: str) -> None:
    report = Report("Training", f"{result.steps} steps; loss from {result.first_loss:.4f} to {result.final_loss:.4f}.")
    report.table([""], [[memory]])
    report.section("Loss", "Mean over supervised tokens since the point before.")
    report.curve([(float(step), loss) for step, loss in losses], "steps", "loss")
    report.table(["step", "loss"], losses)
    report.section("Options")
    report.table(["", ""], [(name, str(value)) for name, value in config.model_dump().items()])
    report.write(path)
