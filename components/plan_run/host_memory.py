"""Memory of the training process on a machine without a GPU, such as a laptop."""

import math

from qlora_pipelines.components.core.config.placement import in_bytes
from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.fit import GIB, Plan

LIBRARIES = 1020 << 20
"""Bytes of a Python process that has imported torch, transformers, peft, trl, bitsandbytes and mlflow."""
SCRATCH = 0.4
"""Share of a step's tensors by which its memory exceeds them: oneDNN's scratch, and what glibc does not give back.

`LIBRARIES` and this were measured with tests/benchmarks/plan_vs_measured.py, on rows of 256 to 2048 tokens of a model
of 135 M parameters.
"""
SUPERVISOR = 140 << 20
"""Bytes of the step's own process, which starts the one that trains: Python, kfp and the store's client; no PyTorch."""


def peak(plan: Plan, supervised: float = 1.0) -> int:
    """Peak resident memory of training on a CPU, in bytes.

    There are two peaks, of which the higher counts. While the base is loaded, its 16-bit files (2 bytes per parameter)
    are mapped, and one weight after the other is quantised. In a training step there are the adapter and its gradients
    (the same size), the optimiser, and the tensors of the step: unlike on a GPU they are not paged, and the logits are
    only those of the supervised tokens.

    Args:
        plan: of the run.
        supervised: share of a row's tokens that is supervised.
    """
    base = plan.architecture
    weights = sum(memory.weight_bytes(weight) for weight in base.weights)
    traced = plan.activations
    # Where bitsandbytes' CPU code quantises, it has a float32 copy of the weight (4 bytes per element) next to the
    # 16-bit one (2). Dequantising in a step takes no more.
    dequantised = max((6 * weight.numel for weight in base.weights if weight.quantised), default=0)
    head = memory.head_bytes(base, round(plan.tokens * supervised))
    step = round((1 + SCRATCH) * (traced.saved + max(head, traced.backward + dequantised)))
    training = 2 * memory.adapter_bytes(base) + memory.optimiser_bytes(base) + step
    return LIBRARIES + weights + max(training, 2 * base.parameters + dequantised)


def of_pod(plan: Plan, supervised: float = 1.0) -> int:
    """Bytes that the pod needs: `peak`, and the process that starts training and restarts it, where one does."""
    return peak(plan, supervised) + (SUPERVISOR if plan.train.max_restarts else 0)


def verdict(needed: int, limit: str) -> tuple[bool, str]:
    """Whether training on the CPU fits a pod's memory, and a sentence that says so.

    Args:
        needed: bytes that it needs at its peak.
        limit: the pod's memory, as Kubernetes writes it.
    """
    said = f"training on the CPU needs {needed / GIB:.1f} GiB"
    if needed <= in_bytes(limit):
        return True, f"{said}, and memory is {limit}"
    return False, f"{said}, but memory is {limit}: set memory {math.ceil(needed / GIB)}Gi"
