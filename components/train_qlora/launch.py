"""One process a GPU, through torch's launcher."""

import uuid
from collections.abc import Callable
from typing import Any

from components.core.errors import InputError, TransientError


def run(work: Callable[..., Any], processes: int, *args: Any) -> Any:
    """Calls `work(*args)` in this process, or in so many of its own; returns what the first of them returned.

    Args:
        work: a function of a module, so that other processes can import it.
        processes: how many.
        *args: what can be pickled.

    Raises:
        InputError: one of the processes failed, and the others were ended; the line is its own.
    """
    if processes == 1:
        return work(*args)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        return elastic_launch(config, work)(*args)[0]
    except ChildFailedError as error:
        place, failure = error.get_first_failure()
        kind, _, line = failure.message.partition(": ")
        if kind == "TransientError":
            raise TransientError(line) from None
        raise InputError(line if kind == "InputError" else f"process {place} failed: {failure.message}") from None


def rank() -> int:
    """This process' place among them; 0 is the one that writes."""
    import torch.distributed

    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def agreed(value: bool) -> bool:
    """What the first process says, in all of them: a decision by the clock must not differ between them."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return value
    device = "cuda" if torch.cuda.is_available() else "cpu"
    said = torch.tensor([value], dtype=torch.uint8, device=device)
    torch.distributed.broadcast(said, src=0)
    return bool(said.item())
