"""The loss of supervised tokens, with the head at the positions that predict one and nowhere else."""

from typing import Any

from qlora_pipelines.components.core.data import chat_template
from qlora_pipelines.components.core.errors import InputError

IMAGE_MARKS = "mm_token_type_ids"
"""A model's input: 0 for a token of text."""


def total(model: Any, inputs: dict[str, Any]) -> tuple[Any, int, Any]:
    """Cross-entropy, summed over the supervised tokens of a row.

    Args:
        model: a causal language model.
        inputs: as `packing.collate` gives them; `labels` of shape (1, tokens).

    Returns:
        The sum, a float32 scalar in nats; how many supervised tokens there are; and the model's outputs.

    Raises:
        InputError: the model gives neither the logits that it is asked for nor all of them.
    """
    import torch

    labels = inputs["labels"]
    # Position t predicts token t + 1. Only positions that predict a supervised token go through the head.
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=chat_template.IGNORED)
    supervised = targets != chat_template.IGNORED
    others = {name: value for name, value in inputs.items() if name != "labels"}
    positions = supervised[0].nonzero()[:, 0]  # and not a mask: some models go on with the logits' three dimensions
    outputs = _outputs(model, others | {"logits_to_keep": positions, "use_cache": False})
    logits = at(model, outputs, positions, labels.shape[1])
    # In float32: a sum of thousands of terms, and the logarithm of softmax, need more than 8 significant bits.
    loss = torch.nn.functional.cross_entropy(logits.float(), targets[supervised], reduction="sum")
    return loss, len(logits), outputs


def _outputs(model: Any, inputs: dict[str, Any]) -> Any:
    """What a model makes of text; one that wants to be told which tokens stand for an image in training is told: none.

    Asked first without, as it is for each model to say what it needs: Molmo 2 does so before it computes anything.
    """
    try:
        return model(**inputs)
    except ValueError as error:
        if IMAGE_MARKS not in str(error) or IMAGE_MARKS in inputs:
            raise
        return model(**inputs, **{IMAGE_MARKS: inputs["input_ids"].new_zeros(inputs["input_ids"].shape)})


def at(model: Any, outputs: Any, positions: Any, tokens: int) -> Any:
    """The logits at some positions of a row, shape (positions, vocabulary).

    Args:
        model: a causal language model, named where it is refused.
        outputs: the model's, asked for those positions with `logits_to_keep`. Some models do not know it, and give all.
        positions: ascending, shape (positions,); the last token's, which predicts nothing, is never among them.
        tokens: the row's.

    Raises:
        InputError: the model gives neither these logits nor all.
    """
    logits = outputs.logits.reshape(-1, outputs.logits.shape[-1])
    if len(logits) == tokens:
        logits = logits[positions.to(logits.device)]
    if len(logits) != len(positions):
        raise InputError(f"{type(model).__name__} gives logits at other positions than it is asked for")
    return logits
