"""Whether a run fits a GPU, and if not, the change that would make it fit."""

import dataclasses
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, first_line
from qlora_pipelines.components.plan_run import activations, architecture, memory
from qlora_pipelines.components.plan_run.architecture import Architecture
from qlora_pipelines.components.plan_run.memory import Estimate

GIB = 1 << 30
MOST_GPUS = 64


class Unplannable(InputError):
    """The model's own code cannot run on tensors without data, so its memory is not known."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run's architecture, options and memory on one GPU. `tokens` is the length of the longest packed row."""

    folder: Path
    architecture: Architecture
    train: TrainConfig
    max_length: int
    activations: activations.Activations
    estimate: Estimate

    @property
    def tokens(self) -> int:
        """Tokens of the longest row: a conversation longer than `batch_tokens` gets a row of its own."""
        return row_tokens(self.train, self.max_length)


def row_tokens(train: TrainConfig, max_length: int) -> int:
    """Tokens of the longest row that training sees."""
    return max(train.batch_tokens, max_length) if train.packing else max_length


def plan(folder: Path, train: TrainConfig, max_length: int) -> Plan:
    """Counts the memory of a run.

    Args:
        folder: has the base's config.json; no weights are read.
        train: the training options.
        max_length: tokens of the longest conversation.

    Raises:
        InputError: transformers does not know the architecture, or a target matches no layer.
        Unplannable: it knows it, but cannot run it without data.
    """
    found = architecture.read(folder, train)
    try:
        tokens = row_tokens(train, max_length)
        held = activations.trace(folder, train, tokens)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise Unplannable(f"memory is not known: {found.name} cannot be run without data: {reason}") from None
    how = "fsdp" if train.fsdp else "ddp"
    return Plan(folder, found, train, max_length, held, memory.estimate(found, held, tokens, train.processes, how))


def change_that_fits(run: Plan, limit: int) -> str:
    """The least costly change with which the run fits `limit` bytes whole, in words; or that there is none.

    Tried in this order: checkpointing (the same result, more time), shorter rows with accumulation (as many tokens a
    step), a shorter length (cuts conversations), a smaller rank; and where none of it is enough, more GPUs with FSDP.
    """
    steps: list[str] = []
    now = run
    for name, change in _changes(run):
        trial = _with(now, change)
        if trial.estimate.total < now.estimate.total:
            now = trial
            steps = [step for step in steps if not _replaces(name, step)] + [name]
        if now.estimate.total <= limit:
            return f"{' and '.join(steps)} would fit, with {_gib(limit - now.estimate.total)} GiB left"
    # Checkpointing changes nothing of the result, so it goes before cutting conversations short.
    light = run if run.train.gradient_checkpointing else _with(run, {"gradient_checkpointing": True})
    lighter = [] if light is run else ["gradient_checkpointing true"]
    for trial, also in ((light, lighter), (now, steps)):
        for gpus in (2**power for power in range(1, MOST_GPUS.bit_length())):
            cut = memory.estimate(trial.architecture, trial.activations, trial.tokens, gpus, "fsdp")
            if cut.total <= limit:
                options = " and ".join([f"fsdp true and processes {gpus}", *also])
                return f"{gpus} such GPUs would fit, with {options}; or take a larger GPU"
    return f"no change of length, batch, rank or up to {MOST_GPUS} GPUs would fit: take a smaller base model"


def _changes(run: Plan) -> list[tuple[str, dict[str, Any]]]:
    changes: list[tuple[str, dict[str, Any]]] = []
    if not run.train.gradient_checkpointing:
        changes.append(("gradient_checkpointing true", {"gradient_checkpointing": True}))
    row, accumulation = run.train.batch_tokens, run.train.gradient_accumulation_steps
    while row // 2 >= run.max_length:
        row, accumulation = row // 2, accumulation * 2
        change = {"batch_tokens": row, "gradient_accumulation_steps": accumulation}
        changes.append((f"batch_tokens {row} with gradient_accumulation_steps {accumulation}", change))
    length = min(run.max_length, row)
    while length > 256:
        length //= 2
        row, accumulation = min(row, length), accumulation * max(1, row // length)
        change = {"max_length": length, "batch_tokens": row, "gradient_accumulation_steps": accumulation}
        changes.append(
            (f"max_length and batch_tokens {length} with gradient_accumulation_steps {accumulation}", change)
        )
    rank = run.train.lora_r
    while rank > 8:
        rank = max(8, rank // 2)
        changes.append((f"lora_r {rank}", {"lora_r": rank}))
    return changes


def _replaces(name: str, earlier: str) -> bool:
    """Whether a change makes an earlier one needless: both set the same option."""
    return name.split(" ")[0] == earlier.split(" ")[0] or ("batch_tokens" in name and "batch_tokens" in earlier)


def _with(run: Plan, change: dict[str, Any]) -> Plan:
    max_length = change.get("max_length", run.max_length)
    train = run.train.model_copy(update={name: value for name, value in change.items() if name != "max_length"})
    return plan(run.folder, train, max_length)


def verdict(run: Plan, limit: int, what: str) -> tuple[bool, str]:
    """Whether the run fits `limit` bytes, and a sentence that says so of `what`, the name of the GPU."""
    needed, least = run.estimate.total, run.estimate.on_gpu_at_least
    if needed <= limit:
        return True, f"fits {what}: {_gib(needed)} GiB needed, {_gib(limit - needed)} GiB left"
    if least <= limit:
        return (
            True,
            f"fits {what} with {_gib(needed - limit)} GiB of the optimiser paged out to the host, which is slow",
        )
    return False, f"does not fit {what}: {_gib(least)} GiB needed; {change_that_fits(run, limit)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
