"""Memory that training takes, and what to do where there is too little."""

from components.core.config import TrainConfig
from components.core.errors import InputError


def peak_mib() -> int:
    """The most memory in use at a time so far, in MiB: on the GPU, or of this process where there is none."""
    import resource

    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()  # the allocator keeps what it once took
        return round(int(total - free) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def is_exhausted(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def exhausted(config: TrainConfig, planned_mib: int) -> InputError:
    """The error to raise then: what the plan had said, and what would help.

    Args:
        config: the training options.
        planned_mib: what plan_run said training needs; 0: it was not asked.
    """
    said = f"the plan said {planned_mib:,} MiB" if planned_mib else "there was no plan"
    ways = [] if config.gradient_checkpointing else ["set gradient_checkpointing true"]
    ways += [f"lower batch_tokens (now {config.batch_tokens}) or max_length", "take a larger GPU"]
    return InputError(f"out of memory at {peak_mib():,} MiB; {said}: {', or '.join(ways)}")
