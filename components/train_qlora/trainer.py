"""TRL's trainer on packed rows, with the head computed at supervised positions only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import get_scheduler
from trl import SFTTrainer

from qlora_pipelines.components.core.models import supervised_loss
from qlora_pipelines.components.train_qlora import launch, shard


def _next(rate: Callable[[int], float]) -> Callable[[int], float]:
    """The rates of a schedule from its second step on."""
    return lambda step: rate(step + 1)


class PackedTrainer(SFTTrainer):
    """Supervised fine-tuning on what `packing.collate` gives.

    TRL's own head scores every position, prompts included, and computes everything twice. Here the head runs once, at
    the positions that predict a supervised token.
    """

    supervised_tokens = 0
    """Supervised tokens that this process has trained on since it started."""

    def __init__(self, *, sharded: bool = False, **kwargs: Any) -> None:
        """Args: sharded: shard the model over all processes with FSDP; all others are TRL's."""
        self.model: Any
        self.sharded = sharded
        super().__init__(**kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does it."""
        super().create_accelerator_and_postprocess()
        if self.sharded:
            shard.configure(self)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of transformers without its first step, at which the rate is 0.

        Its rise of w steps gives step s, from 0, s/w of the peak: the first step learns nothing, which is the whole
        training where there is only one. Here it gives (s + 1) / (w + 1), as torchtitan and nanoGPT do, and the peak
        comes at the same step. What falls does so as before, and is above 0 at the last step too.

        Args:
            num_training_steps: optimiser steps.
            optimizer: whose rate it sets; None: the trainer's own.
        """
        if self.lr_scheduler is None:
            whole = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer or self.optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps) + 1,
                num_training_steps=num_training_steps + 1,
            )
            rates = [_next(rate) for rate in whole.lr_lambdas]
            self.lr_scheduler: Any = torch.optim.lr_scheduler.LambdaLR(whole.optimizer, rates)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        if self.sharded:
            self.model = self.model_wrapped = shard.wrap(self.model)
        return super()._prepare_for_training(*args, **kwargs)

    def save_adapter(self, folder: str, base_uri: str) -> None:
        """Writes the adapter as peft reads it, with its base's address; all processes call it, rank 0 writes."""
        weights = shard.full_adapter(self.model) if self.sharded else None
        if launch.rank() > 0:
            return
        model = self.accelerator.unwrap_model(self.model)
        if weights is None:
            model.save_pretrained(folder)
            (Path(folder) / "README.md").unlink()  # peft's form of a model card, to be filled in
        else:  # peft finds no adapter in a model that FSDP has wrapped
            model.active_peft_config.save_pretrained(folder)
            safetensors.torch.save_file(weights, Path(folder) / "adapter_model.safetensors", {"format": "pt"})
        path = Path(folder) / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": base_uri, "inference_mode": True}
        for name in ("target_modules", "exclude_modules"):  # sets in peft: their order is another in each process
            if isinstance(config.get(name), list):
                config[name] = sorted(config[name])
        path.write_text(json.dumps(config, indent=1, sort_keys=True))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the adapter into a checkpoint; with FSDP it is in the shards, with the optimiser."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.sharded:
            shard.save(self, output_dir)
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self.sharded and checkpoint:
            shard.load(self, checkpoint)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Cross-entropy of the supervised tokens of one micro-batch, as its part of the optimiser step's mean.

        The step's loss is the mean over all its supervised tokens, N of them in all processes and micro-batches:
        -1/N · sum of log p(token | those before it). So a micro-batch gives its sum divided by N, not its own mean. The
        mean of means would weigh a token more where fewer of them share a micro-batch, and packed rows hold very
        different numbers of supervised tokens (huggingface.co/blog/gradient_accumulation). Then packing, accumulation
        and the number of processes do not change what is learnt.

        Args:
            model: the model with its adapter.
            inputs: as `packing.collate` gives them; `labels` of shape (1, tokens).
            return_outputs: also return the model's outputs.
            num_items_in_batch: N; None: the supervised tokens of this micro-batch.

        Returns:
            The loss, a scalar in nats per token.
        """
        total, count, outputs = supervised_loss.total(model, inputs)
        self.supervised_tokens += count
        loss = total / (count if num_items_in_batch is None else num_items_in_batch)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # N counts the tokens of all processes, and DDP and FSDP average gradients over them: this makes it a sum.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss
