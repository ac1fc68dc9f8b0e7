"""What other methods to train the same model would take: weights, gradients and optimiser, without activations."""

import dataclasses

from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.architecture import Architecture


@dataclasses.dataclass(frozen=True)
class Method:
    """Bytes of one training method; `trained` is what is trained, `full` or `adapter`."""

    weights_in: str
    trained: str
    weights: int
    gradients: int
    optimiser: int

    @property
    def total(self) -> int:
        """Sum, in bytes."""
        return self.weights + self.gradients + self.optimiser


def methods(architecture: Architecture) -> list[Method]:
    """The table FP32 / 16-bit / INT8 / QLoRA, for full training and for this run's adapter.

    AdamW with two moments of 32 bits everywhere: 4 + 4 = 8 bytes per trained parameter. Full 16-bit training is mixed
    precision: it keeps a master copy of the weights in fp32 too (Micikevicius et al. 2018, section 3.1), counted as
    optimiser: 8 + 4 = 12 bytes. Quantised weights cannot be trained in full. INT8 is LLM.int8 (Dettmers et al. 2022):
    one byte per element of each linear layer, and an fp32 scale per row. The adapter and its gradients are in fp32.
    """
    count, trainable = architecture.parameters, architecture.trainable
    int8 = sum(
        weight.numel + 4 * weight.shape[0] if weight.quantised else memory.weight_bytes(weight)
        for weight in architecture.weights
    )
    nf4 = sum(memory.weight_bytes(weight) for weight in architecture.weights)
    adapter = memory.adapter_bytes(architecture)
    return [
        Method("FP32", "full", 4 * count, 4 * count, 8 * count),
        Method("16-bit", "full", 2 * count, 2 * count, 12 * count),
        Method("FP32", "adapter", 4 * count + adapter, adapter, 8 * trainable),
        Method("16-bit", "adapter", 2 * count + adapter, adapter, 8 * trainable),
        Method("INT8", "adapter", int8 + adapter, adapter, 8 * trainable),
        Method("QLoRA", "adapter", nf4 + adapter, adapter, memory.optimiser_bytes(architecture)),
    ]
