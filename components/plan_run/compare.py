"""What other ways of training the same model would take: weights, gradients and optimiser, without activations."""

import dataclasses

from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Way:
    """Bytes of one way of training; `trained` is what is trained, `full` or `adapter`."""

    weights_in: str
    trained: str
    weights: int
    gradients: int
    optimiser: int

    @property
    def total(self) -> int:
        """Sum, in bytes."""
        return self.weights + self.gradients + self.optimiser


def ways(architecture: Architecture) -> list[Way]:
    """The table FP32 / 16-bit / INT8 / QLoRA, for full training and for this run's adapter.

    AdamW with two moments of 32 bits everywhere. Full 16-bit training is mixed precision: it keeps a master copy of the
    weights in fp32 beside them (Micikevicius et al. 2018), counted as optimiser. Quantised weights cannot be trained in
    full. INT8 is LLM.int8 (Dettmers et al. 2022): a byte an element of each linear layer and an fp32 scale a row.
    """
    count, trainable = architecture.parameters, architecture.trainable
    int8 = sum(
        weight.numel + 4 * weight.shape[0] if weight.quantised else memory.weight_bytes(weight)
        for weight in architecture.weights
    )
    nf4 = sum(memory.weight_bytes(weight) for weight in architecture.weights)
    adapter = memory.adapter_bytes(architecture)
    return [
        Way("FP32", "full", 4 * count, 4 * count, 8 * count),
        Way("16-bit", "full", 2 * count, 2 * count, 12 * count),
        Way("FP32", "adapter", 4 * count + adapter, adapter, 8 * trainable),
        Way("16-bit", "adapter", 2 * count + adapter, adapter, 8 * trainable),
        Way("INT8", "adapter", int8 + adapter, adapter, 8 * trainable),
        Way("QLoRA", "adapter", nf4 + adapter, adapter, memory.optimiser_bytes(architecture)),
    ]
