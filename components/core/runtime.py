"""What every step does around its work: quiet libraries, a log that shows progress, errors in one line."""

import atexit
import contextlib
import errno
import gc
import importlib
import json
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qlora_pipelines.components.core.errors import InputError

STEP_VARIABLE = "QLORA_STEP"
"""Names the running step to the processes it starts."""
FORMAT_VARIABLE = "QLORA_LOG_FORMAT"
"""With the value `json` each line of the log is a JSON object, for programs; otherwise text, for people."""
ERROR_MARK = "] error: "
"""Part of every line of text that says why a step failed."""
TERMINATION_LOG = Path("/dev/termination-log")
"""In a Kubernetes pod, a file for the reason of a container's end: `kubectl describe`, Argo and Kubeflow show it."""
_TERMINATION_LIMIT = 1000
"""Characters. Kubernetes keeps 4096 bytes of it."""
_OF_A_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR)
"""What is wrong with a folder or disk that a path names, which is for people to fix."""
_current = os.environ.get(STEP_VARIABLE, "qlora")


def log(message: str, level: str = "info", **data: object) -> None:
    """Prints one line of the log, with the name of the running step.

    Args:
        message: what people read.
        level: info, warning or error.
        data: further fields of the JSON form, such as those of `Progress`.
    """
    line = {"step": _current, "level": level, "message": message, **data}
    print(json.dumps(line) if os.environ.get(FORMAT_VARIABLE) == "json" else as_text(line), flush=True)


def as_text(line: dict[str, Any]) -> str:
    """A line of the log as people read it."""
    return f"[{line['step']}] {with_level(line)}"


def with_level(line: dict[str, Any]) -> str:
    """A line's message, with the level in front if it is a warning or an error."""
    return str(line["message"]) if line["level"] == "info" else f"{line['level']}: {line['message']}"


def parse(text: str) -> dict[str, Any] | None:
    """Reads a line that `log` wrote as JSON; None: something else wrote it."""
    if not text.startswith('{"step": '):
        return None
    try:
        return dict(json.loads(text))
    except ValueError:  # two processes wrote at the same time
        return None


class Progress:
    """Logs how far a loop is, at most every `every` seconds.

    Args:
        what: what is being done, such as "scoring base".
        total: how many units there are.
        every: seconds between two lines.
        done: how many units were finished earlier.
    """

    def __init__(self, what: str, total: int, every: float = 5.0, done: int = 0) -> None:
        """See the class."""
        self.what, self.total, self.every, self.before = what, total, every, done
        self.started = self.said = time.monotonic()

    def at(self, done: int, note: str = "") -> None:
        """Notes that `done` units are finished; the last one is always logged."""
        now = time.monotonic()
        if done < self.total and now - self.said < self.every:
            return
        self.said = now
        # Time left = mean time per unit in this process x units left.
        left = (now - self.started) / max(done - self.before, 1) * (self.total - done)
        ending = f", {duration(left)} left" if done < self.total else f" in {duration(now - self.started)}"
        text = f"{self.what}: {done}/{self.total}{', ' + note if note else ''}{ending}"
        log(text, what=self.what, done=done, total=self.total, note=note, seconds_left=round(left, 1))


def duration(seconds: float) -> str:
    """Seconds as text: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def quiet_libraries() -> None:
    """Silences the libraries' progress bars and advice: a step's log is the step's own."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "BITSANDBYTES_NOWELCOME": "1",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1",
        "TQDM_DISABLE": "1",
        "MLFLOW_LOGGING_LEVEL": "WARNING",  # it announces each database it makes
    }.items():
        os.environ.setdefault(name, value)
    # It advises a faster CPU kernel, which only inference would use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def load_libraries(*modules: str) -> None:
    """Imports large libraries without garbage collection.

    torch and transformers create a million objects that live until the process ends. The collector would scan them
    several times during the import and once more at the end: 2 of the 6 seconds that importing both and ending take.

    Args:
        modules: their names; those that import the others are enough. Modules that are there are not imported again.
    """
    if all(module in sys.modules for module in modules):
        return
    before = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        if before:
            gc.enable()
    atexit.register(gc.freeze)


def explain(error: Exception) -> str:
    """What the user can fix, in one line: an `InputError`, or a folder or disk; '' for any other error."""
    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in _OF_A_PLACE:
        return ""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno)}; give another place, or make room and rights there"


def terminated(line: str) -> None:
    """Hands the reason of the process' end to Kubernetes, in a pod."""
    if TERMINATION_LOG.is_file():
        with contextlib.suppress(OSError):  # the log has it
            TERMINATION_LOG.write_text(line[:_TERMINATION_LIMIT])


@contextlib.contextmanager
def step(name: str, ended: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Runs a step's work under its name; an error becomes one line and exit code 1.

    Args:
        name: of the step.
        ended: called at the end with the error's line, or with '' where there was none.
    """
    global _current
    _current = os.environ[STEP_VARIABLE] = name
    quiet_libraries()
    started = time.monotonic()
    try:
        yield
    except Exception as error:
        if not (line := explain(error)):
            # Not the user's fault: the traceback goes to the log, and its last line to where people look.
            traceback.print_exc()
            line = traceback.format_exception_only(error)[0].split("\n")[0]
        log(line, "error")
        terminated(line)
        ended(line)
        raise SystemExit(1) from None
    ended("")
    took = time.monotonic() - started
    log(f"done in {duration(took)}", seconds=round(took, 1))


@contextlib.contextmanager
def one_thread_per_operation() -> Iterator[None]:
    """Within it, torch computes each operation in one thread.

    Threads that share an operation wait for the slowest. That costs more than it gives where several operations are in
    work at a time, where they are small, and where a pod has a part of its node's cores.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
