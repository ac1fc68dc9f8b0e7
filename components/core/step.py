"""A step's work: under its name in the log, and with an outcome in the store, for the step that tells people."""

import contextlib
from collections.abc import Iterator

from qlora_pipelines.components.core import runtime
from qlora_pipelines.components.core.store import outcomes


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Runs a step's work under its name; an error becomes one line and exit code 1, and the store keeps how it ended.

    Args:
        name: of the step; retries of a task, and tasks of the same step, replace one another's outcome.
    """
    with runtime.step(name, ended=lambda line: outcomes.end(name, line)):
        outcomes.begin(name)
        yield
