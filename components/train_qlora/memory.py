"""Memory and disk that training takes, and what to do where there is too little."""

import contextlib
import errno
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from qlora_pipelines.components.core.config.steps import TrainConfig
from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import loading


def peak_mib() -> int:
    """The most memory in use so far, in MiB: on the GPU, or of this process where there is none."""
    import resource

    if _on_gpu():
        import torch

        free, total = torch.cuda.mem_get_info()  # the allocator keeps what it took: this is the peak
        return round(int(total - free) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # Linux counts it in KiB


def _on_gpu() -> bool:
    """As `loading.on_gpu`, but PyTorch is not imported to find out: a process without it is on no GPU."""
    return "torch" in sys.modules and loading.on_gpu()


@contextlib.contextmanager
def explain(config: TrainConfig, planned_gpu_mib: int, planned_host_mib: int) -> Iterator[None]:
    """Turns an error that means that memory or disk ran out into one line.

    Args:
        config: the training options.
        planned_gpu_mib: memory that plan_run said training needs on a GPU; 0: it was not asked.
        planned_host_mib: the same where there is no GPU.

    Raises:
        InputError: no memory is left; what the plan said, and what would help.
        TransientError: the disk is full.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise disk_full(error) from None
        if is_out_of_memory(error):
            raise out_of_memory(config, planned_gpu_mib, planned_host_mib) from None
        raise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    torch = sys.modules.get("torch")
    kinds = (MemoryError, torch.OutOfMemoryError) if torch else (MemoryError,)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that a disk is full: Python's, safetensors', or one of PyTorch's, which are unclear."""
    said = str(error)
    return (
        (isinstance(error, OSError) and error.errno == errno.ENOSPC)
        or "No space left on device" in said
        or "PytorchStreamWriter failed writing" in said
        or ("inline_container.cc" in said and "unexpected pos" in said)
    )


def out_of_memory(config: TrainConfig, planned_gpu_mib: int, planned_host_mib: int) -> InputError:
    """The error for it; see `explain`."""
    planned = planned_gpu_mib if _on_gpu() else planned_host_mib
    said = f"the plan said {planned:,} MiB" if planned else "there was no plan"
    ways = [] if config.gradient_checkpointing else ["set gradient_checkpointing true"]
    ways += [
        f"lower batch_tokens (now {config.batch_tokens}) or max_length",
        "raise memory" if config.use_cpu else "take a larger GPU",
    ]
    return InputError(f"out of memory at {peak_mib():,} MiB; {said}: {', or '.join(ways)}")


def disk_full(error: BaseException) -> TransientError:
    """The error for it: which disk, how large it is, and what would help."""
    named = getattr(error, "filename2", None) or getattr(error, "filename", None)
    place = Path(named).parent if named else Path(tempfile.gettempdir())
    size = ""
    with contextlib.suppress(OSError):
        size = f", {shutil.disk_usage(place).total / 2**30:.1f} GiB in all"
    return TransientError(
        f"the disk is full at {place}{size}: a checkpoint needs room for the adapter three times, and the plan's report"
        " says under Disk what the pod needs; free some, or give the pod more ephemeral storage"
    )


def killed(config: TrainConfig, planned_gpu_mib: int, planned_host_mib: int) -> str:
    """What to add where a process was killed, most likely for its memory: what the plan said, and what would help."""
    said = f"the plan said {planned_host_mib:,} MiB"
    if not config.use_cpu:
        said = f"the plan said {planned_gpu_mib:,} MiB on a GPU, {planned_host_mib:,} MiB without one"
    return f"{said if planned_host_mib else 'there was no plan'}: raise memory"
