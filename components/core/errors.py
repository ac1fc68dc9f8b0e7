"""The one exception that people are meant to read."""


class InputError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    Steps and commands print it without a traceback and exit 1.
    """
