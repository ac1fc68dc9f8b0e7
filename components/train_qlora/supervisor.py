"""Starts training in a process of its own, and again from the newest checkpoint where that process dies.

Kubeflow retries a step whose pod is gone, not one whose process ended (`retryPolicy: OnError`). So what ends a process
and may pass by itself is repaired here, in the pod: a time limit, a lost peer, the kernel that kills for memory.

Where the kernel kills all of a container's processes at once, this one goes too. That is what the kubelet sets on nodes
with cgroup v2 (`memory.oom.group`), unless it has `singleProcessOOMKill`; under cgroup v1 the kernel kills one process.

This process never imports PyTorch: so it holds no GPU, and takes little memory.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError, TransientError
from qlora_pipelines.components.core.runtime import log
from qlora_pipelines.components.train_qlora import child, launch

WAIT, LONGEST_WAIT = 2.0, 60.0
"""Seconds before the first restart, and the most; each wait is twice the one before it."""
GRACE = 5.0
"""Seconds that a training process has to end by itself when the step is interrupted."""


def run(
    work: Callable[..., Any],
    processes: int,
    *,
    begin: Callable[[Path], tuple[Any, ...]],
    reached: Callable[[], int],
    max_restarts: int,
    killed: str,
) -> Any:
    """Calls `work` in new processes, again and again until it returns, fails for good or gets no further.

    Args:
        work: a function of a module; see `launch.run`.
        processes: how many work together.
        begin: called before each start with an empty folder, which is removed when the processes have ended; returns
            the arguments of `work`.
        reached: the step of the newest whole checkpoint.
        max_restarts: restarts without a newer checkpoint; a newer one makes the count start again. 0: none, and a
            single process is this one.
        killed: what to do about a process that was killed, most likely for its memory; ends the last error.

    Returns:
        What the process of rank 0 returned.

    Raises:
        InputError: the same would happen again: bad data, a loss that is no number.
        TransientError: `max_restarts` in a row brought no newer checkpoint.
    """
    with _sigterm_ends() if max_restarts else contextlib.nullcontext():
        before, used = reached(), 0
        while True:
            try:
                with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
                    arguments = begin(Path(name))
                    if not max_restarts:
                        return launch.run(work, processes, *arguments)
                    return _in_child(Path(name), work, processes, *arguments)
            except TransientError as error:
                failed = error
            step = before
            with contextlib.suppress(TransientError):  # the store is away, which may be what failed
                step = reached()
            if step > before:
                before, used = step, 0
            if used == max_restarts:
                raise _gave_up(failed, used, killed) from None
            wait = min(WAIT * 2**used, LONGEST_WAIT)
            used += 1
            log(
                f"{failed}; going on after step {step} in {wait:.0f} s; restarts left without a newer checkpoint:"
                f" {max_restarts - used}",
                "warning",
            )
            time.sleep(wait)


def _gave_up(failed: TransientError, used: int, killed: str) -> TransientError:
    """The last failure, with what was tried and what to do."""
    line = f"{failed}; {killed}" if isinstance(failed, launch.Killed) else str(failed)
    times = "once" if used == 1 else f"{used} times"
    return TransientError(f"{line} (restarted {times} without a newer checkpoint)" if used else line)


def _in_child(folder: Path, work: Callable[..., Any], processes: int, *args: Any) -> Any:
    """`launch.run` in a new process: `child.py`.

    It is a plain subprocess: multiprocessing would import this process' main module there, kfp or the command line.
    """
    (folder / child.JOB).write_bytes(pickle.dumps((sys.path, pickle.dumps((work, processes, args)))))
    temporary = folder / "tmp"  # what a killed process leaves is removed with the folder
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", child.__name__, str(folder), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(temporary)},
        process_group=0,  # Ctrl-C reaches this process alone, and it is handed on once
    )
    try:
        status = process.wait()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)  # MLflow is told
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            process.wait()
    result = folder / child.RESULT
    if not result.is_file():
        raise launch.died("the training process", status)
    found = pickle.loads(result.read_bytes())
    if isinstance(found, InputError):
        raise found
    return found


@contextlib.contextmanager
def _sigterm_ends() -> Iterator[None]:
    """SIGTERM ends the block as an exception would, so that what it started is ended too.

    By default it ends Python without a word, and as a container's first process it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows it there only
        yield
        return

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
