"""Every step's report as one self-contained HTML page: light and dark, no network. Its look is in report.html.jinja."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

BARS = 60
"""Bars a histogram has at most."""
MOST_ROWS = 200
"""Rows of a table that grows with the data, such as that of its files; see `Report.long_table`."""
LONG = 40
"""Characters from which a cell's text keeps some width on a narrow screen, where the table then scrolls."""


class Report:
    """Collects the parts of a page in order, then writes it. Everything is escaped but `markupsafe.Markup`.

    Args:
        title: the page's heading.
        summary: one sentence under it.
    """

    def __init__(self, title: str, summary: str) -> None:
        """See the class."""
        self.title, self.summary = title, summary
        self._parts: list[dict[str, Any]] = []

    def section(self, heading: str, text: str = "") -> None:
        """Starts a section, with a sentence under its heading where `text` is given."""
        self._parts.append({"kind": "section", "heading": heading, "text": text})

    def figures(self, figures: Sequence[tuple[str, object]]) -> None:
        """The few figures that matter most, each above its name."""
        self._parts.append({"kind": "figures", "figures": [(name, _text(value)) for name, value in figures]})

    def verdict(self, good: bool, text: str) -> None:
        """Says in colour how it ended."""
        self._parts.append({"kind": "verdict", "good": good, "text": text})

    def long_table(self, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of what may be any number of things: the first of them, and how many more there are."""
        left = len(rows) - MOST_ROWS
        more = [(f"and {left:,} more", *[""] * (len(head) - 1))] if left > 0 else []
        self.table(head, [*rows[:MOST_ROWS], *more])

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; numbers are flush right, fractions of a column have as many decimals. An empty head is left out."""
        columns = [_same_decimals(column) for column in zip(*rows, strict=True)] or [[]] * len(head)
        numeric = [bool(column) and all(map(_is_number, column)) for column in columns]
        header = [("n" if number else "", text) for text, number in zip(head, numeric, strict=True)]
        cells = [[(_cell_style(value), _text(value)) for value in row] for row in zip(*columns, strict=True)]
        self._parts.append({"kind": "table", "head": header if any(head) else [], "rows": cells})

    def block(self, text: str) -> None:
        """Preformatted text."""
        self._parts.append({"kind": "block", "text": text})

    def curve(self, points: Sequence[tuple[float, float]], x: str, y: str) -> None:
        """A line through (x, y) points, the axes marked with their ends."""
        if len(points) < 2:
            return
        xs, ys = zip(*points, strict=True)
        low, high = min(0.0, *ys), max(ys) or 1.0
        first, last = min(xs), max(xs)
        shares = [((px - first) / (last - first or 1), (py - low) / (high - low)) for px, py in points]
        ends = {"first": first, "last": last, "low": low, "high": high}
        self._parts.append({"kind": "curve", "points": shares, "x": x, "y": y} | ends)

    def histogram(self, counts: Sequence[int], x: str, y: str) -> None:
        """Bars over equal ranges, of whole numbers from 0 on.

        Args:
            counts: how often each number occurs, of shape (greatest number + 1,).
            x: what the numbers are.
            y: what is counted.
        """
        used = max((number for number, count in enumerate(counts) if count), default=0) + 1
        step = -(-used // BARS)
        bars = [sum(counts[start : start + step]) for start in range(0, used, step)]
        self._parts.append({"kind": "histogram", "bars": bars, "step": step, "x": x, "y": y})

    def write(self, path: str | Path) -> None:
        """Writes the page."""
        import jinja2

        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
        )
        template = environment.get_template("report.html.jinja")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(template.render(title=self.title, summary=self.summary, parts=self._parts))


def _same_decimals(column: Sequence[object]) -> list[object]:
    """Writes a column's fractions with as many decimals as leave the smallest one two digits: two to four."""
    smallest = min((abs(value) for value in column if isinstance(value, float) and value), default=1.0)
    decimals = min(max(1 - math.floor(math.log10(smallest)), 2), 4) if math.isfinite(smallest) else 2
    return [f"{value:,.{decimals}f}" if isinstance(value, float) else value for value in column]


def _is_number(value: object) -> bool:
    """Whether it is a number, or one written with a unit such as `12 %`."""
    if isinstance(value, str):
        return value.rstrip(" %").replace(".", "", 1).replace(",", "").lstrip("-").isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value


def _cell_style(value: object) -> str:
    if _is_number(value):
        return "n"
    return "long" if isinstance(value, str) and not isinstance(value, Markup) and len(value) > LONG else ""
