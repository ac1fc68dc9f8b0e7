"""GPU memory of a training run by part: plain arithmetic on an architecture, in bytes.

The base is in NF4 with double quantisation (Dettmers et al. 2023, sections 2 and 3), all that is not a linear layer
stays in 16 bit, the adapter is trained in float32 with AdamW whose two moments are 32-bit and paged.
"""

import dataclasses
import math

from components.plan_run.activations import Activations
from components.plan_run.architecture import Architecture, Weight

BLOCK = 64
"""Elements of a weight that share one absmax."""
OUTER_BLOCK = 256
"""Absmax values that share one second-level absmax."""
CODES = 4 + 4 * 16 + 4 * 256
"""Bytes a tensor keeps beside them: the offset, the code book of NF4 and that of the 8-bit absmax, in fp32."""

CUDA_CONTEXT = 600 << 20
"""Bytes that the driver, cuBLAS and bitsandbytes' kernels take before the first tensor; an allowance."""
FRAGMENTATION = 0.05
"""Share of the working tensors that the caching allocator cannot use; an allowance."""

LOGIT = 2 + 4 + 4 + 4
"""Bytes a logit takes at its worst moment: in bfloat16 and in float32, its log-softmax and the gradient of that."""


def nf4_bytes(numel: int) -> int:
    """Bytes of a weight in NF4 with double quantisation, as bitsandbytes stores it.

    Two elements a byte, one absmax of 8 bits a block of 64, one of 32 bits a block of 256 of those, and the codes:
    4 + 8/64 + 32/(64·256) = 4.127 bits an element. Without double quantisation it would be 4 + 32/64 = 4.5.
    """
    blocks = math.ceil(numel / BLOCK)
    return math.ceil(numel / 2) + blocks + 4 * math.ceil(blocks / OUTER_BLOCK) + CODES


def weight_bytes(weight: Weight) -> int:
    """Bytes of one tensor of the base as training holds it."""
    return nf4_bytes(weight.numel) if weight.quantised else weight.numel * weight.itemsize


def adapter_bytes(architecture: Architecture) -> int:
    """Bytes of the adapter, in float32; its gradients take the same."""
    return 4 * architecture.trainable


def optimiser_bytes(architecture: Architecture) -> int:
    """Bytes of paged_adamw_32bit: two moments of 32 bits a trainable parameter."""
    return 8 * architecture.trainable


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
            and optimiser are cut into equal shares, and one layer's weights at a time, and the next one's, are whole.
    """
    nf4 = sum(weight_bytes(weight) for weight in architecture.weights if weight.quantised)
    kept = sum(weight_bytes(weight) for weight in architecture.weights if not weight.quantised)
    adapter = adapter_bytes(architecture)
    optimiser = optimiser_bytes(architecture)
    gradients = adapter * (2 if gpus > 1 and how == "ddp" else 1)
    largest = max((weight.numel * 2 for weight in architecture.weights if weight.quantised), default=0)
    working = max(head_bytes(architecture, tokens), activations.backward + largest)
    if how == "fsdp" and gpus > 1:
        working += 2 * nf4 // architecture.layers
        nf4, kept, adapter, gradients, optimiser = (
            math.ceil(part / gpus) for part in (nf4, kept, adapter, gradients, optimiser)
        )
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
