"""One process per GPU, through PyTorch's launcher."""

import ctypes
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.models import loading
from qlora_pipelines.components.core.runtime import quiet_libraries

PR_SET_PDEATHSIG = 1
"""Linux's prctl: the signal that a process gets when its parent ends."""


class Killed(TransientError):
    """A process was ended by SIGKILL, which is how the kernel takes memory back."""


def run(work: Callable[..., Any], processes: int, *args: Any) -> Any:
    """Calls `work(*args)` in this process, or in several new ones.

    Args:
        work: a function of a module, so that other processes can import it.
        processes: how many; 1 is this process.
        *args: what can be pickled.

    Returns:
        What the process of rank 0 returned.

    Raises:
        InputError: one of the processes failed, and the others were ended; the line is its own.
        TransientError: one was killed, or failed for a reason that the user cannot fix.
    """
    if processes == 1:
        return work(*args)
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for library in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(library).setLevel(logging.CRITICAL)  # the failure is reported once, below
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # supervisor.py restarts: this launcher would count restarts after progress too
    )
    try:
        return elastic_launch(config, _worker)(os.getpid(), work, *args)[0]
    except SignalException:  # the launcher's form of it
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        place, failure = error.get_first_failure()
        if not os.path.isfile(failure.error_file):  # it was ended before it could write one
            raise died(f"training process {place}", failure.exitcode) from None
        said = failure.message if isinstance(failure.message, str) else failure.message["message"]
        kind, _, line = said.partition(": ")
        if kind == "InputError":
            raise InputError(line) from None
        raise TransientError(line if kind == "TransientError" else f"training process {place} failed: {said}") from None


def _worker(parent: int, work: Callable[..., Any], *args: Any) -> Any:
    """What each of several processes does."""
    end_with(parent)
    quiet_libraries()
    return work(*args)


def end_with(parent: int) -> None:
    """Ends this process as soon as its parent is gone, however that ended, so that no orphan holds a GPU.

    Args:
        parent: the process that started this one, by a thread that lives as long as it.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL):
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def _watch(parent: int) -> None:
    """Where the kernel does not tell: looks every second."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def died(who: str, status: int) -> TransientError:
    """The error for a process that ended without a word of its own.

    Args:
        who: names the process.
        status: its exit status, or the signal that killed it, negative.
    """
    if status >= 0:
        return TransientError(f"{who} ended with exit status {status}: what it printed last says why")
    said = f"{who} was killed by signal {-status} ({signal.Signals(-status).name})"
    if status == -signal.SIGKILL:
        return Killed(f"{said}, most likely for taking more memory than its limit")
    return TransientError(said)


def rank() -> int:
    """This process's rank; rank 0 is the one that writes."""
    import torch.distributed

    if torch.distributed.is_initialized():
        return int(torch.distributed.get_rank())
    return int(os.environ["RANK"]) if torch.distributed.is_torchelastic_launched() else 0


def check_gpus(processes: int, compute_dtype: str) -> None:
    """Checks that there is a GPU for each process, and that it has the dtype, where there are GPUs at all.

    The question for bfloat16 starts CUDA, so only processes that train may ask.

    Raises:
        InputError: there are fewer, or they are too old.
    """
    import torch

    gpus = torch.cuda.device_count() if loading.on_gpu() else 0
    if 0 < gpus < processes:
        raise InputError(f"processes is {processes}, but this pod has {gpus} GPU(s): lower it, or ask for more GPUs")
    if gpus and compute_dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise InputError(f"{torch.cuda.get_device_name()} has no bfloat16: set compute_dtype float16")


def broadcast(value: bool) -> bool:
    """The value that rank 0 has, in every process: a decision by the clock must be the same in all of them."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return value
    device = "cuda" if loading.on_gpu() else "cpu"
    shared = torch.tensor([value], dtype=torch.uint8, device=device)
    torch.distributed.broadcast(shared, src=0)
    return bool(shared.item())
