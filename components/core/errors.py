"""The exceptions that people are meant to read."""


class InputError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    Steps and commands print it without a traceback and exit 1. The same input fails again.
    """


class TransientError(InputError):
    """One that may pass by itself: a store that does not answer, a disk that is full."""


def first_line(error: Exception) -> str:
    """What an exception of a library says, in one line."""
    return str(error).strip().split("\n")[0].rstrip() or type(error).__name__
