"""Whether a run fits a GPU, and if not, the change that would make it fit."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.plan_run import activations, architecture, memory
from qlora_pipelines.components.plan_run.architecture import Architecture
from qlora_pipelines.components.plan_run.memory import Estimate

GIB = 1 << 30
MOST_GPUS = 64


class UntraceableModel(InputError):
    """The model's own code cannot run on tensors without data, so its memory is not known."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's architecture, options and memory on one GPU. `tokens` is the length of the longest row."""

    folder: Path
    architecture: Architecture
    train: TrainConfig
    max_length: int
    tokens: int
    activations: activations.Activations
    estimate: Estimate


def plan(folder: Path, train: TrainConfig, max_length: int) -> Plan:
    """Counts the memory of a run.

    Args:
        folder: has the base's config.json; no weights are read.
        train: the training options.
        max_length: tokens of the longest conversation.

    Raises:
        InputError: transformers does not know the architecture, or a target matches no layer.
        UntraceableModel: it knows it, but cannot run it without data.
    """
    try:
        base = architecture.read(folder, train)
    except NotImplementedError as error:  # its class does not know its own embeddings
        raise UntraceableModel(f"memory is not known: {first_line(error)}") from None
    # A conversation longer than batch_tokens gets a packed row of its own.
    tokens = max(train.batch_tokens, max_length) if train.packing else max_length
    try:
        traced = activations.trace(folder, train, tokens)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise UntraceableModel(f"memory is not known: {base.name} cannot be run without data: {reason}") from None
    estimate = memory.estimate(base, traced, tokens, train.processes, "fsdp" if train.fsdp else "ddp")
    return Plan(folder, base, train, max_length, tokens, traced, estimate)


class Change(NamedTuple):
    """Options to change, and the same in words."""

    words: str
    options: dict[str, Any]


def change_that_fits(run: Plan, limit: int) -> str:
    """The least costly change with which the whole run fits `limit` bytes, in words; or that there is none.

    Tried in this order: checkpointing (the same result, more time), shorter rows with accumulation (as many tokens per
    step), a shorter length (cuts conversations), a smaller rank; and where none of it is enough, more GPUs with FSDP.
    """
    changes = _changes(run)
    applied: list[Change] = []
    now = run
    for change in changes:
        trial = _with(now, change)
        if trial.estimate.total < now.estimate.total:
            now = trial
            # A later value of the same option replaces the earlier one.
            applied = [earlier for earlier in applied if not earlier.options.keys() & change.options] + [change]
        if now.estimate.total <= limit:
            words = " and ".join(change.words for change in applied)
            return f"{words} would fit, with {_gib(limit - now.estimate.total)} GiB left"
    # Checkpointing does not change the result, so it is tried before conversations are cut.
    free = [change for change in changes if "gradient_checkpointing" in change.options]
    for trial, also in ((_with(run, free[0]) if free else run, free), (now, applied)):
        for gpus in (2**power for power in range(1, MOST_GPUS.bit_length())):
            sharded = memory.estimate(trial.architecture, trial.activations, trial.tokens, gpus, "fsdp")
            if sharded.total <= limit:
                options = " and ".join([f"fsdp true and processes {gpus}", *(change.words for change in also)])
                return f"{gpus} such GPUs would fit, with {options}; or take a larger GPU"
    return f"no change of length, batch, rank or up to {MOST_GPUS} GPUs would fit: take a smaller base model"


def _changes(run: Plan) -> list[Change]:
    changes = []
    if not run.train.gradient_checkpointing:
        changes.append(Change("gradient_checkpointing true", {"gradient_checkpointing": True}))
    row, accumulation = run.train.batch_tokens, run.train.gradient_accumulation_steps
    while row // 2 >= run.max_length:
        row, accumulation = row // 2, accumulation * 2
        options = {"batch_tokens": row, "gradient_accumulation_steps": accumulation}
        changes.append(Change(f"batch_tokens {row} with gradient_accumulation_steps {accumulation}", options))
    length = min(run.max_length, row)
    while length > 256:
        length //= 2
        row, accumulation = min(row, length), accumulation * max(1, row // length)
        options = {"max_length": length, "batch_tokens": row, "gradient_accumulation_steps": accumulation}
        words = f"max_length and batch_tokens {length} with gradient_accumulation_steps {accumulation}"
        changes.append(Change(words, options))
    rank = run.train.lora_r
    while rank > 8:
        rank = max(8, rank // 2)
        changes.append(Change(f"lora_r {rank}", {"lora_r": rank}))
    return changes


def _with(run: Plan, change: Change) -> Plan:
    train = run.train.model_copy(update={key: value for key, value in change.options.items() if key != "max_length"})
    return plan(run.folder, train, change.options.get("max_length", run.max_length))


def verdict(run: Plan, limit: int, what: str) -> tuple[bool, str]:
    """Whether the run fits `limit` bytes, and a sentence that says so of `what`, the name of the GPU."""
    needed, least = run.estimate.total, run.estimate.on_gpu_at_least
    if needed <= limit:
        return True, f"fits {what}: {_gib(needed)} GiB needed, {_gib(limit - needed)} GiB left"
    if least <= limit:
        # The two moments are in CUDA's unified memory (Dettmers et al. 2023, "Paged Optimizers").
        paged = _gib(needed - limit)
        return True, f"fits {what} with {paged} GiB of the optimiser paged out to the host, which is slow"
    return False, f"does not fit {what}: {_gib(least)} GiB needed; {change_that_fits(run, limit)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
