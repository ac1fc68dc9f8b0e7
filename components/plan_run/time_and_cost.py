"""How long a run takes, how much disk it needs and what it costs: arithmetic on counted tokens."""

import dataclasses
import math

from components.core.config import TrainConfig
from components.plan_run import memory
from components.plan_run.architecture import Architecture
from components.plan_run.gpus import TABLE, Gpu

EFFICIENCY = 0.3
"""Share of a GPU's dense bfloat16 speed that training reaches; a guess to be replaced by one's own measurement."""
FULL = 0.97
"""Share of a packed row that is filled where conversations are much shorter than it."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What training goes through: rows, their tokens and the packed rows of one epoch; steps and tokens of the run."""

    rows: int
    tokens: int
    packed_rows: int
    steps: int
    tokens_in_all: int


def work(train: TrainConfig, rows: int, tokens_a_row: float) -> Work:
    """Counts steps as train_qlora makes them.

    Args:
        train: length of a packed row, accumulation, epochs, max_steps.
        rows: training rows.
        tokens_a_row: their mean length after cutting at max_length.
    """
    tokens = round(rows * tokens_a_row)
    packed = max(1, math.ceil(tokens / train.batch_tokens / FULL))
    an_epoch = math.ceil(packed / train.gradient_accumulation_steps)
    steps = train.max_steps or math.ceil(train.epochs * an_epoch)
    return Work(rows, tokens, packed, steps, round(steps / an_epoch * tokens))


def flops(architecture: Architecture, train: TrainConfig, work: Work, tokens_a_row: float) -> float:
    """Floating-point operations of the run.

    A product with a matrix of P parameters takes 2P operations a token forward and 2P backward to its input; weights
    that are trained take 2P more (Kaplan et al. 2020, section 2.1, with the frozen base's own gradient left out).
    Checkpointing adds a forward pass. Scores and values of attention add 4·layers·hidden·length a token forward and
    twice that backward (Chowdhery et al. 2022, appendix B), half of it under a causal mask.
    """
    again = 1 if train.gradient_checkpointing else 0
    matrices = 2 * (2 + again) * architecture.active + 2 * (3 + again) * architecture.trainable
    attention = 4 * (3 + again) * architecture.layers * architecture.hidden * tokens_a_row / 2
    return work.tokens_in_all * (matrices + attention)


def hours(operations: float, gpu: Gpu, efficiency: float) -> float:
    """Hours on one GPU that reaches `efficiency` of its bfloat16 speed."""
    return operations / (gpu.tflops * 1e12 * efficiency) / 3600


@dataclasses.dataclass(frozen=True)
class OnGpu:
    """One line of the table: whether the run fits, hours, and the cost where a price is known (else -1)."""

    gpu: str
    gib: float
    fits: bool
    hours: float
    cost: float


def table(needed: int, operations: float, efficiency: float, prices: dict[str, float]) -> list[OnGpu]:
    """Every GPU type: fits or not, hours, cost.

    Args:
        needed: bytes of GPU memory.
        operations: of the whole run; 0: not known.
        efficiency: share of the data sheet's speed.
        prices: of an hour, by the type's name.
    """
    lines = []
    for gpu in TABLE:
        time = hours(operations, gpu, efficiency) if gpu.tflops and operations else -1.0
        cost = time * prices[gpu.name] if gpu.name in prices and time >= 0 else -1.0
        lines.append(OnGpu(gpu.name, gpu.gib, bool(gpu.tflops) and gpu.memory >= needed, time, cost))
    return lines


def disk(architecture: Architecture) -> dict[str, int]:
    """Bytes of disk by what they hold; pods that train or evaluate need the base, the one that merges both."""
    base = 2 * architecture.parameters
    adapter = memory.adapter_bytes(architecture)
    return {
        "base model": base,
        "adapter": adapter,
        "merged model": base,
        "pod that trains": base + 2 * adapter,
        "pod that merges": 2 * base + adapter,
    }
