"""What the tests have training processes do. Nothing is imported here that imports PyTorch, which takes seconds."""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.train_qlora import launch, training


def killed_once(job: training.Job) -> training.Trained:
    """Trains; but the process of the last rank is killed after step 3, unless it has begun from a checkpoint."""
    from qlora_pipelines.components.train_qlora.callbacks import ProgressCallback

    on_log = ProgressCallback.on_log

    def then_die(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        on_log(self, args, state, control, **more)
        if state.global_step == 3 and launch.rank() == job.config.processes - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if job.resumed is None:
        ProgressCallback.on_log = then_die  # type: ignore[method-assign]
    return training.train(job)


def train_nothing(job: training.Job) -> training.Trained:
    """Writes an adapter at once."""
    (Path(job.output) / "adapter_model.safetensors").write_text("nothing")
    return training.Trained([2.0, 1.0], {}, 1, "cpu")


def leave(path: Path, how: str) -> None:
    """Notes that it was called, and ends its process, or fails, in one of several ways."""
    with path.open("a") as file:
        file.write(".")
    if how == "InputError":
        raise InputError("bad data")
    if how == "PermissionError":
        raise PermissionError(13, "Permission denied", "/store")
    if how == "ValueError":
        raise ValueError("odd\nand more")
    if how == "TransientError":
        raise TransientError("the store is away")
    if how == "exit":
        os._exit(1)  # as the watchdog does
    os.kill(os.getpid(), getattr(signal, how))


def leave_a_file(where: Path) -> None:
    descriptor, name = tempfile.mkstemp()
    os.close(descriptor)
    where.write_text(name)


def sleep(folder: Path) -> None:
    """Writes its process' id, and hangs as a library would: an interrupt does not end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (folder / str(os.getpid())).touch()
    time.sleep(600)
