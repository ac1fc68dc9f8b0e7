"""GPU types that a run may be given: usable memory and dense bfloat16 speed.

Memory is what the driver reports (`nvidia-smi`), in GiB, below the round figure of the name. Speed is the dense
bfloat16 tensor-core figure of NVIDIA's data sheet of each type, in TFLOP/s (half of the figure "with sparsity").
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One type; `memory` in bytes. bfloat16 needs compute capability 8.0, so `tflops` is 0 on older types."""

    name: str
    gib: float
    tflops: float

    @property
    def memory(self) -> int:
        """Usable memory in bytes."""
        return int(self.gib * (1 << 30))


TABLE = (
    Gpu("T4 16 GB", 15.0, 0),
    Gpu("RTX A4000 16 GB", 15.7, 76.7),
    Gpu("L4 24 GB", 22.5, 121),
    Gpu("A10G 24 GB", 22.5, 70),
    Gpu("RTX 4090 24 GB", 24.0, 165),
    Gpu("A100 40 GB", 40.0, 312),
    Gpu("L40S 48 GB", 45.0, 362),
    Gpu("A100 80 GB", 80.0, 312),
    Gpu("H100 80 GB", 79.6, 989),
    Gpu("H200 141 GB", 140.4, 989),
    Gpu("B200 192 GB", 179.1, 2250),
)
"""By memory, smallest first where two are equal in name."""


def smallest(needed: int) -> Gpu | None:
    """The smallest type that computes in bfloat16 and has `needed` bytes, the slower one of two; None: none has."""
    able = [gpu for gpu in TABLE if gpu.tflops and gpu.memory >= needed]
    return min(able, key=lambda gpu: (gpu.memory, gpu.tflops), default=None)
