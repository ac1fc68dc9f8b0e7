"""One look for every step's report: a self-contained HTML page, light and dark, no network."""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

BARS = 60
"""Bars a histogram has at most."""
LONG = 40
"""Characters from which a cell's text keeps some width on a narrow screen, where the table then scrolls."""
_STYLE = """
:root{color-scheme:light dark;--page:#fff;--text:#1c2430;--line:#d9dee6;--soft:#f4f6f9;--dim:#5b6472;--good:#1a7f37;
--bad:#c4320a;--mark:#cfe6ff;--special:#8a4fbf;--ink:#2f6fb5}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--text:#e4e8ee;--line:#353c47;--soft:#1e232b;--dim:#9aa4b2;
--good:#4cc26b;--bad:#ff8a65;--mark:#174066;--special:#c79bf2;--ink:#6aaef2}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:62rem;padding:1.5rem;background:var(--page);
color:var(--text)}
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:2.2rem 0 .5rem}p{margin:.3rem 0 .8rem}
.dim{color:var(--dim);overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.7rem;margin:1.2rem 0}
.figures div{background:var(--soft);border-radius:.5rem;padding:.7rem .9rem;color:var(--dim);font-size:.85rem}
.figures b{display:block;font-size:1.35rem;line-height:1.3;color:var(--text);font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto;margin:.4rem 0 1rem}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:break-word}
th{font-weight:600;font-size:.85rem;color:var(--dim)}
th.n,td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td.long{min-width:14rem}
pre{font:13px/1.5 ui-monospace,monospace;white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);
padding:.7rem .9rem;border-radius:.5rem;margin:.5rem 0}
.good{color:var(--good)}.bad{color:var(--bad)}mark{background:var(--mark);color:inherit;border-radius:.15rem}
pre i{font-style:normal;color:var(--special)}
svg{width:100%;height:auto;display:block;color:var(--ink)}svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
svg line{stroke:var(--line)}
@media (max-width:30rem){body{padding:1rem}svg text{font-size:18px}td:not(.n){min-width:6.5rem}}
"""


@dataclasses.dataclass(frozen=True)
class Markup:
    """HTML that is already safe; every plain string is escaped."""

    html: str


def escape(value: object) -> str:
    """A value as HTML text; `Markup` stays as it is."""
    return value.html if isinstance(value, Markup) else html.escape(str(value))


class Report:
    """Collects the parts of a page in order, then writes it.

    Args:
        title: the page's heading.
        summary: one sentence under it.
    """

    def __init__(self, title: str, summary: str) -> None:
        """See the class."""
        self.title = title
        self._parts = [f"<h1>{escape(title)}</h1><p class=dim>{escape(summary)}</p>"]

    def section(self, heading: str, text: str = "") -> None:
        """Starts a section, with a sentence under its heading where `text` is given."""
        self._parts.append(f"<h2>{escape(heading)}</h2>" + (f"<p class=dim>{escape(text)}</p>" if text else ""))

    def figures(self, figures: Sequence[tuple[str, object]]) -> None:
        """The few figures that matter most, each over what it is."""
        tiles = "".join(f"<div><b>{_written(value)}</b>{escape(name)}</div>" for name, value in figures)
        self._parts.append(f'<div class="figures">{tiles}</div>')

    def verdict(self, good: bool, text: str) -> None:
        """Says in colour how it ended."""
        kind = "good" if good else "bad"
        self._parts.append(f'<p class="{kind}"><strong>{escape(text)}</strong></p>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; numbers are set flush right, fractions of a column alike. An empty heading row is left out."""
        lines = [list(row) for row in rows]
        for place in range(len(head)):
            _align([line for line in lines if isinstance(line[place], float)], place)
        numbers = [bool(lines) and all(_is_number(line[place]) for line in lines) for place in range(len(head))]
        header = "".join(
            f"<th{' class=n' if number else ''}>{escape(cell)}</th>" for cell, number in zip(head, numbers, strict=True)
        )
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in lines)
        start = f"<thead><tr>{header}</tr></thead>" if any(head) else ""
        self._parts.append(f"<div class=scroll><table>{start}<tbody>{body}</tbody></table></div>")

    def block(self, value: object) -> None:
        """Preformatted text."""
        self._parts.append(f"<pre>{escape(value)}</pre>")

    def curve(self, points: Sequence[tuple[float, float]], x: str, y: str) -> None:
        """A line through (x, y) points, the axes marked with their ends."""
        if len(points) < 2:
            return
        xs, ys = [point[0] for point in points], [point[1] for point in points]
        low, high = min(0.0, *ys), max(ys) or 1.0
        width, height = 720, 220
        span = max(xs) - min(xs) or 1

        def at(px: float, py: float) -> tuple[float, float]:
            return 45 + (px - min(xs)) / span * (width - 60), height - 25 - (py - low) / (high - low) * (height - 45)

        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in (at(*point) for point in points))
        self._parts.append(
            f'<svg viewBox="0 -8 {width} {height + 8}" role="img" aria-label="{escape(y)} over {escape(x)}">'
            f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2"/>'
            f'<text x="2" y="{at(xs[0], high)[1]:.0f}">{high:.3g}</text>'
            f'<text x="2" y="{at(xs[0], low)[1]:.0f}">{low:.3g}</text>'
            f'<text x="45" y="{height - 6}">{min(xs):g}</text>'
            f'<text x="{width - 15}" y="{height - 6}" text-anchor="end">{max(xs):g} {escape(x)}</text>'
            f'<text x="45" y="12">{escape(y)}</text></svg>'
        )

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
        width, height, most = 720, 220, max(bars) or 1
        each = (width - 60) / len(bars)
        shapes = "".join(
            f'<rect x="{45 + place * each:.1f}" y="{height - 25 - bar / most * (height - 50):.1f}"'
            f' width="{max(each - 1, 1):.1f}" height="{bar / most * (height - 50):.1f}" fill="currentColor">'
            f"<title>{place * step} to {(place + 1) * step - 1} {escape(x)}: {bar:,}</title></rect>"
            for place, bar in enumerate(bars)
        )
        self._parts.append(
            f'<svg viewBox="0 -8 {width} {height + 8}" role="img" aria-label="{escape(y)} by {escape(x)}">{shapes}'
            f'<line x1="45" x2="{width - 15}" y1="{height - 25}" y2="{height - 25}"/>'
            f'<text x="2" y="30">{most:,}</text><text x="45" y="12">{escape(y)}</text>'
            f'<text x="45" y="{height - 6}">0</text>'
            f'<text x="{width - 15}" y="{height - 6}" text-anchor="end">{len(bars) * step:,} {escape(x)}</text></svg>'
        )

    def write(self, path: str | Path) -> None:
        """Writes the page."""
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(self.title)}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{_STYLE}</style></head><body>{''.join(self._parts)}</body></html>"
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(page)


def _align(lines: list[list[Any]], place: int) -> None:
    """Writes the fractions of one column with as many decimals as leave the smallest two digits, four at most."""
    least = min((abs(line[place]) for line in lines if line[place]), default=1.0)
    decimals = min(max(1 - math.floor(math.log10(least)), 2), 4) if math.isfinite(least) else 2
    for line in lines:
        line[place] = f"{line[place]:,.{decimals}f}"


def _is_number(value: object) -> bool:
    """Numbers, and numbers written with a unit such as `12 %`, stand flush right."""
    if isinstance(value, str):
        return value.rstrip(" %").replace(".", "", 1).replace(",", "").lstrip("-").isdigit()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(value: object) -> str:
    if isinstance(value, bool | str | Markup):
        return escape(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else escape(value)


def _cell(value: object) -> str:
    kind = "n" if _is_number(value) else "long" if isinstance(value, str) and len(value) > LONG else ""
    return f"<td{f' class={kind}' if kind else ''}>{_written(value)}</td>"
