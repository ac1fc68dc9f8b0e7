"""What every step does around its work: quiet libraries, lines that show progress, errors in one line."""

import atexit
import contextlib
import errno
import gc
import importlib
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Iterator

from qlora_pipelines.components.core.errors import InputError

_VARIABLE = "QLORA_STEP"
"""Names the step at work for the processes it starts."""
_OF_A_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR)
"""What is wrong with a folder or disk that a path names, which is for people to mend."""
_current = os.environ.get(_VARIABLE, "qlora")


def log(message: str) -> None:
    """Prints one line of progress, marked with the step at work (`qlora run` shows exactly these)."""
    print(f"[{_current}] {message}", flush=True)


class Progress:
    """Says how far a loop is, at most every `every` seconds.

    Args:
        what: what is being done, such as "scoring base".
        total: how many units there are.
        every: seconds between two lines.
        done: how many units were finished before.
    """

    def __init__(self, what: str, total: int, every: float = 5.0, done: int = 0) -> None:
        """See the class."""
        self.what, self.total, self.every, self.before = what, total, every, done
        self.started = self.said = time.monotonic()

    def at(self, done: int, note: str = "") -> None:
        """Notes that `done` units are finished; the last one is always said."""
        now = time.monotonic()
        if done < self.total and now - self.said < self.every:
            return
        self.said = now
        left = (now - self.started) / max(done - self.before, 1) * (self.total - done)
        ending = f", {duration(left)} left" if done < self.total else f" in {duration(now - self.started)}"
        log(f"{self.what}: {done}/{self.total}{', ' + note if note else ''}{ending}")


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 05 s`, `2 h 07 min`."""
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
    # Warns of a faster kernel for a CPU, of which only inference would make use.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def load_libraries(*modules: str) -> None:
    """Imports large libraries, and keeps Python's collector of garbage out of them.

    torch and transformers make a million objects that live to the end. It would go through them several times on the
    way, and once more when the process ends: of 6 seconds to import both and end, 2 went there.

    Args:
        modules: their names; those that bring the others with them are enough. Where all are there, nothing is done.
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


def of_a_place(error: Exception) -> str:
    """What is wrong with the folder or disk that a path names, in one line; '' where it is something else."""
    if not isinstance(error, OSError) or error.errno not in _OF_A_PLACE:
        return ""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{os.strerror(error.errno)}; give another place, or make room and rights there"


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Runs a step's work under its name; an `InputError` becomes one line and exit code 1."""
    global _current
    _current = os.environ[_VARIABLE] = name
    quiet_libraries()
    started = time.monotonic()
    try:
        yield
    except InputError as error:
        log(f"error: {error}")
        raise SystemExit(1) from None
    except Exception as error:
        if line := of_a_place(error):
            log(f"error: {line}")
            raise SystemExit(1) from None
        # Not the user's doing: the traceback goes to the log, and its last line where people look.
        traceback.print_exc()
        log(f"error: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        sys.stdout.flush()
        raise SystemExit(1) from None
    log(f"done in {duration(time.monotonic() - started)}")
