"""Ends a process that hangs, instead of letting it hold a GPU: the stack of every thread is printed first."""

import contextlib
import faulthandler
import sys
from collections.abc import Iterator


def allow(minutes: float) -> None:
    """Gives the process so many minutes until the next call of `allow` or `done`; then it prints its stacks and exits.

    A timer in C does it, so a process that hangs in a library, or waits for another GPU, is ended too.
    """
    faulthandler.dump_traceback_later(minutes * 60, exit=True, file=sys.__stderr__ or sys.stderr)


def done() -> None:
    """Nothing is timed any more."""
    faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Whatever limit is set within ends with it."""
    try:
        yield
    finally:
        done()
