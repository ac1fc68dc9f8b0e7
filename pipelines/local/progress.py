"""What a person sees during a local run: a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.table import Table as Grid
from rich.text import Text

from qlora_pipelines.components.core.runtime import duration, with_level

WAITING, RUNNING, DONE, FAILED = "[dim]·[/]", "[cyan]▸[/]", "[green]✓[/]", "[red]✗[/]"
BAR = 24
"""Columns of a progress bar."""


class Lines:
    """One line per line that a step logs, with the time since the start: for log files and CI."""

    def __init__(self, output: TextIO, titles: dict[str, str]) -> None:
        """See `screen`."""
        self._output, self._titles = output, titles
        self._started = time.monotonic()
        self._task = ""

    def began(self, task: str) -> None:
        """A task of the pipeline has started."""
        self._task = self._titles[task]

    def said(self, line: dict[str, Any]) -> None:
        """The running task logged a line; its fields are those of `qlora_pipelines.components.core.runtime.log`."""
        passed = duration(time.monotonic() - self._started)
        self._output.write(f"{passed:>11}  {self._task:<20}  {with_level(line)}\n")
        self._output.flush()

    def ended(self, task: str, good: bool) -> None:
        """The task has ended; nothing is written, because the step's own last line says so."""

    def close(self) -> None:
        """The run has ended; a terminal gets its cursor back."""


class Table:
    """All tasks with their state, time and last line, and a bar for the running one; redrawn as they change."""

    def __init__(self, output: TextIO, titles: dict[str, str]) -> None:
        """See `screen`."""
        self._live = Progress(
            _Cell(lambda row: row.fields["sign"], width=1),
            _Cell(lambda row: Text(row.description, "" if row.started else "dim"), no_wrap=True),
            _Cell(lambda row: duration(row.elapsed or 0) if row.started else "", justify="right", min_width=12),
            _Cell(_last_line, no_wrap=True, overflow="ellipsis"),
            console=Console(file=output, highlight=False),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._rows = {
            task: self._live.add_task(title, start=False, sign=WAITING, line={}) for task, title in titles.items()
        }
        self._now = TaskID(0)
        self._live.start()

    def began(self, task: str) -> None:
        """See `Lines`."""
        self._now = self._rows[task]
        self._live.start_task(self._now)
        self._live.update(self._now, sign=RUNNING)

    def said(self, line: dict[str, Any]) -> None:
        """See `Lines`; a warning stays above the table, where the next line does not overwrite it."""
        if line["level"] == "warning":
            self._live.console.print(with_level(line), markup=False)
        elif "seconds" not in line:  # how long the step took, which the table shows anyway
            self._live.update(self._now, line=line)

    def ended(self, task: str, good: bool) -> None:
        """See `Lines`."""
        self._live.stop_task(self._rows[task])
        self._live.update(self._rows[task], sign=DONE if good else FAILED)

    def close(self) -> None:
        """See `Lines`; the table stays on the screen."""
        self._live.stop()


class _Cell(ProgressColumn):
    """A column whose cells a function makes; the options are those of rich's columns."""

    def __init__(self, cell: Callable[[Task], RenderableType], **options: Any) -> None:
        super().__init__(Column(**options))
        self._cell = cell

    def render(self, task: Task) -> RenderableType:
        return self._cell(task)


def _last_line(row: Task) -> RenderableType:
    line = row.fields["line"]
    if row.stop_time or not line.get("seconds_left"):
        return Text(line.get("message", ""))
    grid = Grid.grid(Column(no_wrap=True), Column(width=BAR), Column(no_wrap=True, overflow="ellipsis"), padding=(0, 1))
    note = ", ".join(part for part in (line["note"], f"{duration(line['seconds_left'])} left") if part)
    at = Text(f"{line['done']}/{line['total']}  {note}")
    grid.add_row(line["what"], ProgressBar(line["total"], line["done"], width=BAR), at)
    return grid


Screen = Lines | Table


def screen(output: TextIO, titles: dict[str, str]) -> Screen:
    """The table on a terminal, lines on any other output.

    Args:
        output: where to write, such as sys.stdout.
        titles: the pipeline's tasks in their order, with the names that people read.
    """
    return Table(output, titles) if output.isatty() else Lines(output, titles)
