"""What a person sees while a local run is at work: a live table on a terminal, plain lines anywhere else."""

import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from qlora_pipelines.components.core.runtime import duration

AT = re.compile(r"^(?P<what>[^:]+): (?P<done>\d+)/(?P<total>\d+)(?:, |$)(?P<note>.*)$")
"""A line of `qlora_pipelines.components.core.runtime.Progress`."""
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
SIGNS = {WAITING: "[dim]·[/]", RUNNING: "[cyan]▸[/]", DONE: "[green]✓[/]", FAILED: "[red]✗[/]"}
BAR = 24
"""Columns of a progress bar."""


class Screen(Protocol):
    """Is told what a run does."""

    def began(self, task: str) -> None:
        """A task of the pipeline, by its name there, is at work from now on."""

    def said(self, message: str) -> None:
        """The task at work logged a line."""

    def ended(self, task: str, good: bool) -> None:
        """It ended, well or not."""

    def close(self) -> None:
        """Nothing more will be said: a terminal is left as it was."""


def on(output: TextIO, titles: dict[str, str]) -> Screen:
    """The screen that suits an output.

    Args:
        output: where to write, such as sys.stdout.
        titles: the pipeline's tasks in their order, with the names that people read.
    """
    return Table(output, titles) if output.isatty() else Lines(output, titles)


def titles(spec: dict[str, Any]) -> dict[str, str]:
    """The tasks of a compiled pipeline in the order in which they can run, with their display names.

    Args:
        spec: the pipeline, as the compiler wrote it.
    """
    return dict(_tasks(spec, spec["root"]["dag"]))


def _tasks(spec: dict[str, Any], dag: dict[str, Any]) -> Iterator[tuple[str, str]]:
    waiting = dict(dag["tasks"])
    while waiting:
        name = next(name for name, task in waiting.items() if not waiting.keys() & set(task.get("dependentTasks", ())))
        task = waiting.pop(name)
        inner = spec["components"][task["componentRef"]["name"]].get("dag")
        if inner:
            yield from _tasks(spec, inner)
        else:
            yield name, task["taskInfo"]["name"]


class Lines:
    """One line for each that a step logs, with the time since the start: for log files and CI."""

    def __init__(self, output: TextIO, titles: dict[str, str]) -> None:
        """See `on`."""
        self._output, self._titles = output, titles
        self._started = time.monotonic()
        self._task = ""

    def began(self, task: str) -> None:
        """See `Screen`."""
        self._task = self._titles.get(task, task)

    def said(self, message: str) -> None:
        """See `Screen`."""
        self._output.write(f"{duration(time.monotonic() - self._started):>11}  {self._task:<20}  {message}\n")
        self._output.flush()

    def ended(self, task: str, good: bool) -> None:
        """A step says by itself that it is done, and an error is said at the end."""

    def close(self) -> None:
        """Nothing to put back."""


@dataclasses.dataclass
class _Row:
    title: str
    state: str = WAITING
    began: float = 0.0
    took: float = 0.0
    message: str = ""


class Table:
    """All tasks with their state, time and last line, and a bar for the one at work; drawn anew as it changes."""

    def __init__(self, output: TextIO, titles: dict[str, str]) -> None:
        """See `on`."""
        from rich.console import Console
        from rich.live import Live

        self._rows = {task: _Row(title) for task, title in titles.items()}
        self._now: _Row | None = None
        self._console = Console(file=output, highlight=False)
        self._live = Live(self, console=self._console, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def began(self, task: str) -> None:
        """See `Screen`."""
        self._now = self._rows.setdefault(task, _Row(task))
        self._now.state, self._now.began = RUNNING, time.monotonic()

    def said(self, message: str) -> None:
        """See `Screen`; a warning stays above the table, where the next line does not overwrite it."""
        if message.startswith("warning"):
            self._console.print(message, markup=False)
        elif self._now and not message.startswith("done in "):
            self._now.message = message

    def ended(self, task: str, good: bool) -> None:
        """See `Screen`."""
        row = self._rows.setdefault(task, _Row(task))
        row.state, row.took = DONE if good else FAILED, time.monotonic() - row.began
        self._now = None

    def close(self) -> None:
        """See `Screen`; the table stays as it was last."""
        self._live.stop()

    def __rich__(self) -> Any:
        """The table as it is now."""
        from rich.table import Table as Grid

        grid = Grid.grid(padding=(0, 1))
        grid.add_column(width=1)
        grid.add_column(no_wrap=True)
        grid.add_column(justify="right", no_wrap=True, min_width=12)
        grid.add_column(no_wrap=True, overflow="ellipsis")
        for row in self._rows.values():
            running = row.state == RUNNING
            took = time.monotonic() - row.began if running else row.took
            time_text = "" if row.state == WAITING else duration(took)
            style = "dim" if row.state == WAITING else ""
            grid.add_row(SIGNS[row.state], row.title, time_text, _message(row, running), style=style)
        return grid


def _message(row: _Row, running: bool) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table as Grid
    from rich.text import Text

    at = AT.match(row.message)
    if not (running and at):
        return Text(row.message)
    line = Grid.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(width=BAR)
    line.add_column(no_wrap=True, overflow="ellipsis")
    done, total = int(at["done"]), int(at["total"])
    line.add_row(at["what"], ProgressBar(total, done, width=BAR), Text(f"{done}/{total}  {at['note']}"))
    return line
