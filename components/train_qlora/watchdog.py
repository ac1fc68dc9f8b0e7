"""Ends a process that hangs, so that it does not hold a GPU: it prints the stack of every thread and exits."""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator


def start(minutes: float) -> None:
    """Ends this process after so many minutes, unless `start` or `stop` is called before.

    The timer is in C, so it also ends a process that hangs in a library or waits for another GPU.
    """
    faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.__stderr__ or sys.stderr)


def stop() -> None:
    """Takes the limit away."""
    faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def running(minutes: float) -> Iterator[None]:
    """Starts the watchdog, and stops it at the end of the block, however that ends."""
    start(minutes)
    try:
        yield
    finally:
        stop()
