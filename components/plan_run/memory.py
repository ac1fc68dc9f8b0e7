"""GPU memory of a training run by part: plain arithmetic on an architecture, in bytes.

The base is in NF4 with double quantisation (Dettmers et al. 2023, sections 2 and 3), all that is not a linear layer
stays in 16 bit, the adapter is trained in float32 with AdamW whose two moments are paged.
"""

import dataclasses
import math

from qlora_pipelines.components.plan_run.activations import Activations
from qlora_pipelines.components.plan_run.architecture import Architecture, Weight

BLOCK = 64
"""Elements of a weight that share one absmax."""
OUTER_BLOCK = 256
"""Absmax values that share one second-level absmax."""
CODE = 4 * 16
"""Bytes of the code book that a tensor keeps beside them, of NF4 or FP4, in fp32."""
OUTER_CODE = 4 + 4 * 256
"""And with double quantisation the offset and the code book of the 8-bit absmax."""
SMALLEST_8BIT = 4096
"""Elements from which bitsandbytes keeps a tensor's moments in 8 bits."""

CUDA_CONTEXT = 600 << 20
"""Bytes that the driver, cuBLAS and bitsandbytes' kernels take before the first tensor; an allowance."""
FRAGMENTATION = 0.05
"""Share of the working tensors that the caching allocator cannot use; an allowance."""

LOGIT = 2 + 4 + 4 + 4
"""Bytes a logit takes at its worst moment: in bfloat16 and in float32, its log-softmax and the gradient of that."""


def quantised_bytes(numel: int, double: bool = True) -> int:
    """Bytes of a weight in 4 bit, NF4 or FP4, as bitsandbytes stores it.

    Two elements a byte, and one absmax a block of 64: 4 + 32/64 = 4.5 bits an element. With double quantisation the
    absmax has 8 bits, and one of 32 bits a block of 256 of those: 4 + 8/64 + 32/(64·256) = 4.127.
    """
    blocks = math.ceil(numel / BLOCK)
    scales = blocks + 4 * math.ceil(blocks / OUTER_BLOCK) + OUTER_CODE if double else 4 * blocks
    return math.ceil(numel / 2) + scales + CODE


def weight_bytes(weight: Weight) -> int:
    """Bytes of one tensor of the base as training holds it."""
    if weight.quantised:
        return quantised_bytes(weight.numel, weight.quantised.double_quant)
    return weight.numel * weight.itemsize


def adapter_bytes(architecture: Architecture) -> int:
    """Bytes of the adapter, in float32; its gradients take the same."""
    return 4 * architecture.trainable


def optimiser_bytes(architecture: Architecture) -> int:
    """Bytes of AdamW's two moments of every trainable tensor.

    As bitsandbytes stores them: in 32 bits, or in 8 with an fp32 scale a block of 256, where tensors of fewer than 4096
    elements keep 32 bits.
    """
    sizes = [math.prod(shape) for shape in architecture.adapter]
    if architecture.optimiser_bits == 32:
        return 8 * sum(sizes)
    return sum(8 * size if size < SMALLEST_8BIT else 2 * (size + 4 * math.ceil(size / OUTER_BLOCK)) for size in sizes)


def head_bytes(architecture: Architecture, tokens: int) -> int:
    """Bytes while the loss is made: the logits of all supervised tokens at once, and their gradient.

    Args:
        architecture: the base.
        tokens: supervised tokens of a row; at worst all of them.
    """
    return tokens * (LOGIT * architecture.vocabulary + 2 * architecture.hidden)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU by part.

    `working` is the more there is at the highest point of a step: the head's logits, or the backward pass with one
    weight dequantised. `optimiser` is paged: under pressure the driver moves it to the host's memory.
    """

    weights_nf4: int
    weights_16bit: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    working: int
    context: int
    fragmentation: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self.parts().values())

    @property
    def on_gpu_at_least(self) -> int:
        """Sum of the parts that cannot be paged out."""
        return self.total - self.optimiser

    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        return dataclasses.asdict(self)


def estimate(
    architecture: Architecture, activations: Activations, tokens: int, gpus: int = 1, how: str = "ddp"
) -> Estimate:
    """Memory of one of `gpus` GPUs.

    Args:
        architecture: base and adapter.
        activations: of one row, from `activations.trace`.
        tokens: length of the row.
        gpus: how many share the run; each has a row of its own.
        how: `ddp`: each holds all, and a second copy of the gradients in buckets; `fsdp`: weights, adapter, gradients
            and optimiser are cut into equal shares, but for the scales of the 4-bit weights. One layer at a time and
            the next one are whole, and in a step embeddings and head are.
    """
    nf4 = sum(weight_bytes(weight) for weight in architecture.weights if weight.quantised)
    kept = sum(weight_bytes(weight) for weight in architecture.weights if not weight.quantised)
    adapter = adapter_bytes(architecture)
    optimiser = optimiser_bytes(architecture)
    gradients = adapter * (2 if gpus > 1 and how == "ddp" else 1)
    largest = max((weight.numel * 2 for weight in architecture.weights if weight.quantised), default=0)
    working = max(head_bytes(architecture, tokens), activations.backward + largest)
    if how == "fsdp" and gpus > 1:
        codes = sum(math.ceil(weight.numel / 2) for weight in architecture.weights if weight.quantised)
        working += 2 * codes // architecture.layers + kept
        nf4 = nf4 - codes + math.ceil(codes / gpus)
        kept, adapter, gradients, optimiser = (math.ceil(part / gpus) for part in (kept, adapter, gradients, optimiser))
    return Estimate(
        weights_nf4=nf4,
        weights_16bit=kept,
        adapter=adapter,
        gradients=gradients,
        optimiser=optimiser,
        activations=activations.held,
        working=working,
        context=CUDA_CONTEXT,
        fragmentation=int(FRAGMENTATION * (activations.held + working)),
    )
