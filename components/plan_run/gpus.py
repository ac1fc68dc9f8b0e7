"""GPU types that a run may be given: usable memory and dense 16-bit speed.

Memory is what the driver reports (`nvidia-smi`), in GiB, below the round figure of the name. Speed is the dense
16-bit tensor-core figure of NVIDIA's data sheet of each type, in TFLOP/s (half of the figure "with sparsity"), the same
in bfloat16 and float16 where a type has both.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One type; `memory` in bytes. `bfloat16` says whether it computes in it: that needs compute capability 8.0."""

    name: str
    gib: float
    tflops: float
    bfloat16: bool = True

    @property
    def memory(self) -> int:
        """Usable memory in bytes."""
        return int(self.gib * (1 << 30))

    def why_not(self, needed: int, compute_dtype: str) -> str:
        """Why a run that needs so many bytes does not fit, and what to do; empty where it fits."""
        if self.memory < needed:
            return "too small"
        if compute_dtype == "bfloat16" and not self.bfloat16:
            return "no bfloat16: set train_qlora.compute_dtype float16"
        return ""


TABLE = (
    Gpu("T4 16 GB", 15.0, 65, bfloat16=False),
    Gpu("RTX A4000 16 GB", 15.7, 76.7),
    Gpu("V100 16 GB", 15.8, 125, bfloat16=False),
    Gpu("L4 24 GB", 22.5, 121),
    Gpu("A10G 24 GB", 22.5, 70),
    Gpu("RTX 4090 24 GB", 24.0, 165),
    Gpu("V100 32 GB", 31.7, 125, bfloat16=False),
    Gpu("A100 40 GB", 40.0, 312),
    Gpu("L40S 48 GB", 45.0, 362),
    Gpu("A100 80 GB", 80.0, 312),
    Gpu("H100 80 GB", 79.6, 989),
    Gpu("H200 141 GB", 140.4, 989),
    Gpu("B200 192 GB", 179.1, 2250),
)
"""Smallest memory first, as named."""


def smallest(needed: int, compute_dtype: str) -> Gpu | None:
    """The smallest type that fits a run, the slower one of two; None: none does."""
    fitting = [gpu for gpu in TABLE if not gpu.why_not(needed, compute_dtype)]
    return min(fitting, key=lambda gpu: (gpu.memory, gpu.tflops), default=None)
