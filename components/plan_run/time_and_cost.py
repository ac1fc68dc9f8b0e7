"""How long a run takes and what it costs: arithmetic on counted tokens."""

import dataclasses
import math

from qlora_pipelines.components.core.config.run import RunConfig
from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.runtime import duration
from qlora_pipelines.components.plan_run.architecture import Architecture
from qlora_pipelines.components.plan_run.gpus import TABLE, Gpu
from qlora_pipelines.components.plan_run.sampling import Sample

EFFICIENCY = 0.3
"""Share of a GPU's dense 16-bit speed that training reaches; a guess, to be replaced by your own measurement."""
FILLED = 0.97
"""Share of a packed row that is filled where conversations are much shorter than the row."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What training goes through: rows, their tokens and the packed rows of one epoch; steps and tokens of the run."""

    rows: int
    tokens: int
    packed_rows: int
    steps: int
    tokens_in_all: int


def of_run(config: RunConfig, samples: dict[str, Sample]) -> Work | None:
    """What the whole run goes through, duplicates not known; None where its data is not known.

    Args:
        config: the whole run.
        samples: of the first rows, by side.
    """
    if "train" not in samples:
        return None
    kept = 1.0 if "eval" in samples else 1 - config.for_step("prepare_dataset").eval_share
    sample = samples["train"]
    return work(config.for_step("train_qlora"), max(1, round(sample.rows * kept)), sample.tokens_per_row)


def work(train: TrainConfig, rows: int, tokens_per_row: float) -> Work:
    """Counts steps as train_qlora makes them.

    Args:
        train: packing and the length of a packed row, accumulation, processes, num_train_epochs, max_steps.
        rows: training rows.
        tokens_per_row: their mean length after cutting at max_length.
    """
    tokens = round(rows * tokens_per_row)
    packed = max(1, math.ceil(tokens / train.batch_tokens / FILLED)) if train.packing else rows
    steps_per_epoch = math.ceil(packed / train.gradient_accumulation_steps / train.processes)
    steps = train.max_steps or math.ceil(train.num_train_epochs * steps_per_epoch)
    return Work(rows, tokens, packed, steps, round(steps / steps_per_epoch * tokens))


def flops(architecture: Architecture, train: TrainConfig, work: Work) -> float:
    """Floating-point operations of the run.

    A product with a matrix of P parameters takes P multiplications and P additions per token: 2P forward, 2P backward
    for the gradient of its input, and 2P more for its own gradient if it is trained. Kaplan et al. 2020 (section 2.1)
    have 6P for all three; here the frozen base has 4P, the adapter 6P. Checkpointing adds 2P, a second forward pass.

    Attention multiplies queries with keys, and scores with values: 2 products of 2·hidden·length operations per token
    and layer, 4·layers·hidden·length in all forward, and twice that backward, as both factors of both products need a
    gradient (Chowdhery et al. 2022, appendix B). A causal mask halves it. `length` is the mean length of a
    conversation, as attention in a packed row stays within each.
    """
    recomputed = 1 if train.gradient_checkpointing else 0
    matrices = 2 * (2 + recomputed) * architecture.active_parameters + 2 * (3 + recomputed) * architecture.trainable
    attention = 4 * (3 + recomputed) * architecture.layers * architecture.hidden * (work.tokens / work.rows) / 2
    return work.tokens_in_all * (matrices + attention)


def hours(operations: float, gpu: Gpu, efficiency: float) -> float:
    """Hours on one GPU that reaches `efficiency` of its 16-bit speed."""
    return operations / (gpu.tflops * 1e12 * efficiency) / 3600


@dataclasses.dataclass(frozen=True)
class OnGpu:
    """One line of the table.

    Why the run does not fit, empty where it does; hours, and the cost where a price is known, else -1.
    """

    gpu: str
    gib: float
    why_not: str
    hours: float
    cost: float

    def cells(self) -> tuple[str, float, str, str, str]:
        """The line as people read it: type, GiB, `fits` or why not, duration, cost."""
        time = duration(max(1.0, self.hours * 3600)) if self.hours >= 0 else ""
        return self.gpu, self.gib, self.why_not or "fits", time, f"{self.cost:.2f}" if self.cost >= 0 else ""


def table(
    needed: int, compute_dtype: str, operations: float, efficiency: float, prices: dict[str, float]
) -> list[OnGpu]:
    """Every GPU type: fits or why not, hours, cost.

    Args:
        needed: bytes of GPU memory.
        compute_dtype: of the products.
        operations: of the whole run; 0: not known.
        efficiency: share of the data sheet's speed.
        prices: of an hour, by the type's name.
    """
    lines = []
    for gpu in TABLE:
        why_not = gpu.why_not(needed, compute_dtype)
        time = hours(operations, gpu, efficiency) if operations and not why_not else -1.0
        cost = time * prices[gpu.name] if gpu.name in prices and time >= 0 else -1.0
        lines.append(OnGpu(gpu.name, gpu.gib, why_not, time, cost))
    return lines
