"""QLoRA training: the base in NF4, a LoRA adapter on its linear layers, supervised fine-tuning through TRL."""

import math
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from components.core import attempts, dataset, models, storage
from components.core.config import TrainConfig
from components.core.errors import InputError
from components.core.report import Report
from components.core.steps import Progress, log

Config = TrainConfig


class Result(NamedTuple):
    """Mean loss over the supervised tokens of the first and of the last logged steps, and the steps made."""

    first_loss: float
    final_loss: float
    steps: int


def run(
    config: TrainConfig,
    *,
    train_set: str,
    dataset_digest: str,
    base_uri: str,
    training_key: str,
    adapter: str,
    report: str,
) -> Result:
    """Trains the adapter, or returns the one that this training_key already has.

    Args:
        config: the step's options.
        train_set: Parquet file that prepare_dataset wrote.
        dataset_digest: what prepare_dataset said it made; checked.
        base_uri: folder of the base model.
        training_key: names the adapter; it is kept in the store under this key.
        adapter: folder to write: peft's adapter, the tokenizer and a manifest.
        report: HTML page to write.

    Raises:
        InputError: data of another digest, a target that matches no layer, a loss that is no number.
    """
    key_uri = storage.join(storage.root(), "adapters", training_key)
    finished = attempts.find(key_uri)
    if finished is None:
        samples = dataset.read(train_set, dataset_digest)
        with tempfile.TemporaryDirectory() as folder, attempts.attempt(key_uri) as attempt:
            base = storage.download(base_uri, Path(folder))
            losses = _train(config, samples, base, attempt.folder)
            finished = attempt.commit(
                {
                    "training_key": training_key,
                    "base_uri": base_uri,
                    "dataset_digest": dataset_digest,
                    "config": config.model_dump(),
                    "losses": losses,
                }
            )
    else:
        log(f"this training is finished already: {finished.uri}")
    with tempfile.TemporaryDirectory() as folder:
        storage.upload(storage.download(finished.uri, Path(folder)), adapter)
    losses = finished.info["losses"]
    result = Result(first_loss=losses[0][1], final_loss=losses[-1][1], steps=losses[-1][0])
    _report(config, losses, result, report)
    return result


def _train(config: TrainConfig, samples: list[dataset.Sample], base: Path, output: Path) -> list[tuple[int, float]]:
    """Trains and saves; returns (step, loss) as logged."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    models.check_folder(base)
    targets = models.check_targets(config.target_modules, models.linear_layers(base))
    tokenizer = models.load_tokenizer(base)
    set_seed(config.seed)
    log(f"loading {base.name} in NF4")
    model = models.load_quantized(base)
    batch = config.batch_size * config.gradient_accumulation_steps
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(len(samples) / batch))
    rows = [{"input_ids": sample.encoded.input_ids, "labels": sample.encoded.labels} for sample in samples]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=config.batch_size,
                gradient_accumulation_steps=config.gradient_accumulation_steps,
                learning_rate=config.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=math.ceil(config.warmup_share * steps),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                gradient_checkpointing=config.gradient_checkpointing,
                # Conversations of like length share a batch: less of it is padding.
                train_sampling_strategy="group_by_length",
                optim="paged_adamw_32bit" if torch.cuda.is_available() else "adamw_torch",
                bf16=True,
                use_cpu=not torch.cuda.is_available(),
                max_length=None,
                seed=config.seed,
                logging_steps=max(1, min(10, steps // 10)),
                logging_nan_inf_filter=False,  # by default a loss that is no number is logged as 0
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha or 2 * config.lora_r,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            callbacks=[_progress(steps)],
        )
        _drop_printing(trainer)
        trainable = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
        log(f"training {trainable:,} parameters for {steps} steps of {batch} conversations")
        trainer.train()
    losses = [(entry["step"], float(entry["loss"])) for entry in trainer.state.log_history if "loss" in entry]
    trainer.model.save_pretrained(str(output), safe_serialization=True)
    tokenizer.save_pretrained(str(output))
    return losses


def _drop_printing(trainer: Any) -> None:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _progress(steps: int) -> Any:
    """A trainer callback that logs a line now and then, and stops at a loss that is no number."""
    from transformers import TrainerCallback

    class ShowProgress(TrainerCallback):
        def __init__(self) -> None:
            self.progress = Progress("training", steps)
            self.loss = ""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                if not math.isfinite(float(logs["loss"])):
                    raise InputError(
                        f"the loss is {logs['loss']} at step {state.global_step}: lower learning_rate"
                        f" (now {args.learning_rate:g}) or look at the data"
                    )
                self.loss = f"loss {float(logs['loss']):.4f}"

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.progress.at(state.global_step, self.loss)

    return ShowProgress()


def _report(config: TrainConfig, losses: list[tuple[int, float]], result: Result, path: str) -> None:
    report = Report("Training", f"{result.steps} steps; loss from {result.first_loss:.4f} to {result.final_loss:.4f}.")
    report.section("Loss", "Mean over supervised tokens since the point before.")
    report.curve([(float(step), loss) for step, loss in losses], "steps", "loss")
    report.table(["step", "loss"], losses)
    report.section("Options")
    report.table(["", ""], [(name, str(value)) for name, value in config.model_dump().items()])
    report.write(path)
