"""One look for every step's report: a self-contained HTML page, light and dark, no network."""

import dataclasses
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

_STYLE = """
:root{color-scheme:light dark;--line:#d5d9e0;--soft:#f5f6f8;--dim:#5b6472;--good:#1a7f37;--bad:#c4320a;--mark:#d7ecff}
@media (prefers-color-scheme:dark){:root{--line:#3a404b;--soft:#1d2026;--dim:#9aa4b2;--good:#4cc26b;--bad:#ff8a65;
--mark:#123a5c}}
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1.5rem;background:Canvas;color:CanvasText}
h1{font-size:1.4rem;margin:0}h2{font-size:1.1rem;margin:2rem 0 .5rem}.dim{color:var(--dim)}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--soft);padding:.7rem;border-radius:.4rem;margin:.4rem 0}
.good{color:var(--good)}.bad{color:var(--bad)}mark{background:var(--mark);color:inherit}
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:var(--dim)}
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

    def verdict(self, good: bool, text: str) -> None:
        """Says in colour how it ended."""
        kind = "good" if good else "bad"
        self._parts.append(f'<p class="{kind}"><strong>{escape(text)}</strong></p>')

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table; numbers are set flush right. An empty heading row is left out."""
        header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
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
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(y)} over {escape(x)}">'
            f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2"/>'
            f'<text x="2" y="{at(xs[0], high)[1]:.0f}">{high:.3g}</text>'
            f'<text x="2" y="{at(xs[0], low)[1]:.0f}">{low:.3g}</text>'
            f'<text x="45" y="{height - 6}">{min(xs):g}</text>'
            f'<text x="{width - 15}" y="{height - 6}" text-anchor="end">{max(xs):g} {escape(x)}</text>'
            f'<text x="45" y="12">{escape(y)}</text></svg>'
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


def _cell(value: object) -> str:
    if isinstance(value, bool | str | Markup):
        return f"<td>{escape(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
    return f"<td class=n>{escape(text)}</td>"
