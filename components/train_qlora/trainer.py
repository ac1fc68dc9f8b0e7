"""TRL's trainer on packed rows, with the head computed at supervised positions only."""

from typing import Any

from trl import SFTTrainer

from components.core import chat


class PackedTrainer(SFTTrainer):
    """Supervised fine-tuning on what `packing.collate` gives.

    TRL's own head scores every position, prompts included, and computes everything twice. Here the head runs once, at
    the positions that predict a supervised token.
    """

    supervised_tokens = 0
    """Supervised tokens that this process has trained on since it started."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Summed cross-entropy of the supervised tokens, divided by their number over all processes and micro-batches.

        Args:
            model: the model with its adapter.
            inputs: as `packing.collate` gives them.
            return_outputs: also return the model's outputs.
            num_items_in_batch: supervised tokens of the whole optimiser step.

        Returns:
            The loss, a scalar in nats a token.
        """
        import torch

        labels = inputs.pop("labels")
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=chat.IGNORED)
        supervised = targets != chat.IGNORED
        outputs = model(**inputs, logits_to_keep=supervised, use_cache=False)
        logits = outputs.logits.reshape(-1, outputs.logits.shape[-1]).float()
        self.supervised_tokens += len(logits)
        total = torch.nn.functional.cross_entropy(logits, targets[supervised], reduction="sum")
        count = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / count
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Tokens are counted over all processes, gradients are averaged over them.
            loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss
