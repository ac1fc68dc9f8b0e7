"""GPU memory of a training run by part: plain arithmetic on an architecture, in bytes.

The base is in NF4 with double quantisation (Dettmers et al. 2023, QLoRA, section 3), all that is not a linear layer
stays in 16 bit, the adapter is trained in float32 with AdamW whose two moments are paged.
"""

import dataclasses
import math

from qlora_pipelines.components.plan_run.activations import Activations
from qlora_pipelines.components.plan_run.architecture import Architecture, Weight

BLOCK = 64
"""Elements of a weight that share one absmax (QLoRA, section 3)."""
OUTER_BLOCK = 256
"""Absmax values that share one second-level absmax (QLoRA, section 3, "Double Quantization")."""
CODE = 4 * 16
"""Bytes of the code book that each tensor has of its own: the 16 values of NF4 or FP4, in fp32."""
OUTER_CODE = 4 + 4 * 256
"""With double quantisation also the mean of the absmax values and the 256 values of their 8-bit code, in fp32."""
SMALLEST_8BIT = 4096
"""Elements from which bitsandbytes keeps a tensor's moments in 8 bits (`min_8bit_size`)."""

CUDA_CONTEXT = 600 << 20
"""Bytes that the driver, cuBLAS and bitsandbytes' kernels take before the first tensor; an allowance."""
FRAGMENTATION = 0.05
"""Share of the working tensors that the caching allocator cannot use; an allowance."""

LOGIT = 2 + 4 + 4 + 4
"""Bytes that a logit takes where the loss takes most.

Then there are at once the product in bfloat16, the same in float32, its log-softmax, and the gradient of that.
"""


def quantised_bytes(numel: int, double: bool = True) -> int:
    """Bytes of a weight in 4 bit, NF4 or FP4, as bitsandbytes stores it.

    Two elements per byte, and one fp32 absmax per block of 64: 4 + 32/64 = 4.5 bits per element. With double
    quantisation an absmax has 8 bits, and 256 of them share one of 32 bits: 4 + 8/64 + 32/(64·256) = 4.127 bits per
    element (Dettmers et al. 2023, section 3: 0.373 bits less).
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
    """Bytes of AdamW's two moments of every trainable tensor, as bitsandbytes stores them.

    In 32 bits that is 2·4 bytes per element. In 8 bits it is 2·1, and 2·4 per block of 256 for the scales (Dettmers et
    al. 2022, 8-bit Optimizers via Block-wise Quantization); there, tensors of fewer than 4096 elements keep 32 bits.
    """
    sizes = [math.prod(shape) for shape in architecture.adapter]
    if architecture.optimiser_bits == 32:
        return 8 * sum(sizes)
    return sum(8 * size if size < SMALLEST_8BIT else 2 * (size + 4 * math.ceil(size / OUTER_BLOCK)) for size in sizes)


def head_bytes(architecture: Architecture, tokens: int) -> int:
    """Bytes while the loss is computed: the logits of all supervised tokens at once, and their hidden states in 16 bit.

    Args:
        architecture: the base.
        tokens: supervised tokens of a row; at worst all of them.
    """
    return tokens * (LOGIT * architecture.vocabulary + 2 * architecture.hidden)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU by part.

    `activations` is what the forward pass keeps for the backward pass. `working` is what else there is at the peak of a
    step: the head's logits, or the backward pass with one weight dequantised. `optimiser` is paged: where memory is
    short, the driver moves it to the host's.
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
    architecture: Architecture, activations: Activations, tokens: int, gpus: int = 1, strategy: str = "ddp"
) -> Estimate:
    """Memory of one of `gpus` GPUs.

    Args:
        architecture: base and adapter.
        activations: of one row, from `activations.trace`.
        tokens: length of the row.
        gpus: how many share the run; each has a row of its own.
        strategy: `ddp`: each GPU holds all, and a second copy of the gradients in buckets. `fsdp`: weights, adapter,
            gradients and optimiser are sharded evenly, except the scales of the 4-bit weights. Unsharded at a time are
            one layer and the next, which is prefetched, and throughout a step embeddings and head.
    """
    quantised = [weight for weight in architecture.weights if weight.quantised]
    nf4 = sum(map(weight_bytes, quantised))
    unquantised = sum(map(weight_bytes, architecture.weights)) - nf4
    adapter = adapter_bytes(architecture)
    optimiser = optimiser_bytes(architecture)
    gradients = adapter * (2 if gpus > 1 and strategy == "ddp" else 1)
    # bitsandbytes dequantises one weight at a time to 16 bits for its product.
    dequantised = 2 * max((weight.numel for weight in quantised), default=0)
    # The loss is computed before the backward pass through the layers, so their peaks do not add up.
    working = max(head_bytes(architecture, tokens), activations.backward + dequantised)
    if strategy == "fsdp" and gpus > 1:
        codes = sum(math.ceil(weight.numel / 2) for weight in quantised)
        working += 2 * codes // architecture.layers + unquantised
        nf4 = nf4 - codes + math.ceil(codes / gpus)
        unquantised, adapter, gradients, optimiser = (
            math.ceil(part / gpus) for part in (unquantised, adapter, gradients, optimiser)
        )
    return Estimate(
        weights_nf4=nf4,
        weights_16bit=unquantised,
        adapter=adapter,
        gradients=gradients,
        optimiser=optimiser,
        activations=activations.saved,
        working=working,
        context=CUDA_CONTEXT,
        fragmentation=int(FRAGMENTATION * (activations.saved + working)),
    )
