"""Memory of the training process on a machine without a GPU, such as a laptop."""

from qlora_pipelines.components.plan_run import memory
from qlora_pipelines.components.plan_run.fit import Plan

LIBRARIES = 1020 << 20
"""Bytes of a Python process that has imported torch, transformers, peft, trl, bitsandbytes and mlflow."""
SCRATCH = 0.4
"""Share of a step's tensors by which its memory exceeds them: oneDNN's scratch, and what glibc does not give back.

Both were measured with tests/benchmarks/plan_vs_measured.py, on rows of 256 to 2048 tokens of a model of 135 M.
"""


def peak(plan: Plan, supervised: float = 1.0) -> int:
    """Peak resident memory of training on a CPU, in bytes.

    Differs from a GPU's: the base's files are mapped into memory while their weights are quantised.

    Args:
        plan: of the run.
        supervised: share of a row's tokens that is supervised.
    """
    base = plan.architecture
    weights = sum(memory.weight_bytes(weight) for weight in base.weights)
    held = plan.activations
    dequantised = max((6 * weight.numel for weight in base.weights if weight.quantised), default=0)
    head = memory.head_bytes(base, round(plan.tokens * supervised))
    step = round((1 + SCRATCH) * (held.held + max(head, held.backward + dequantised)))
    training = 2 * memory.adapter_bytes(base) + memory.optimiser_bytes(base) + step
    return LIBRARIES + weights + max(training, 2 * base.parameters + dequantised)
