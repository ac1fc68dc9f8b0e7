import html
from html.parser import HTMLParser
from pathlib import Path

from markupsafe import Markup

from qlora_pipelines.components.core.report import BARS, Report


class Tags(HTMLParser):
    """Checks that what is opened is closed, and keeps what is needed from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.outside += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page(path: Path) -> str:
    report = Report("Title <x>", "Summary & more")
    report.figures([("rows", 12345), ("share", "7%"), ("loss", 1.23456)])
    report.verdict(True, "Passed")
    report.section("Section", "text")
    report.table(["name", "number", "share"], [("a<b", 1, "1.5%"), (Markup("<b>b</b>"), 2000, "10%")])
    report.table(["", ""], [])
    report.block("<pre>")
    report.curve([(0, 1.0), (5, 2.0)], "steps", "loss")
    report.histogram([0, 3, 0, 5] * 100, "tokens", "rows")
    report.histogram([0], "tokens", "rows")
    report.write(path / "sub" / "page.html")
    return (path / "sub" / "page.html").read_text()


def test_a_page_is_whole_escaped_and_needs_nothing_from_outside(tmp_path: Path) -> None:
    text = page(tmp_path)
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and tags.outside == [] and "url(" not in text and "@import" not in text
    assert "Title &lt;x&gt;" in text and "a&lt;b" in text and "<b>b</b>" in text and "&lt;pre&gt;" in text
    assert "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_no_text_breaks_out_of_its_place(tmp_path: Path) -> None:
    """The same page has the same tags, whatever the texts are."""

    def tags(text: str) -> list[str]:
        report = Report(text, text)
        report.figures([(text, text)])
        report.verdict(False, text)
        report.section(text, text)
        report.table([text, text], [(text, 1)])
        report.block(text)
        report.curve([(0, 1.0), (5, 2.0)], text, text)
        report.histogram([0, 3], text, text)
        report.write(tmp_path / "page.html")
        found: list[str] = []
        parser = Tags()
        parser.handle_starttag = lambda tag, attrs: found.append(f"{tag} {[name for name, _ in attrs]}")
        parser.handle_endtag = lambda tag: found.append(f"/{tag}")
        parser.feed((tmp_path / "page.html").read_text())
        return found

    hostile = "{{ 7 * 7 }}</title></pre></td></text></svg>\" onload='x'><script>alert(1)</script><!--"
    assert tags("text" * 20) == tags(hostile)
    assert html.unescape((tmp_path / "page.html").read_text()).count(hostile) == 22, "every text is there as it was"


def test_columns_of_numbers_are_flush_right_with_their_heading(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "<th class=n>number</th><th class=n>share</th>" in text and "<th>name</th>" in text
    assert "<td class=n>2,000</td><td class=n>10%</td>" in text and "<b>12,345</b>" in text


def test_a_histogram_counts_everything_once(tmp_path: Path) -> None:
    report = Report("t", "s")
    report.histogram([1] * 1000, "tokens", "rows")
    report.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    counts = [int(part.split("</title>")[0].rsplit(": ", 1)[1]) for part in text.split("<title>")[2:]]
    assert sum(counts) == 1000 and len(counts) <= BARS


def test_fractions_of_a_column_are_written_alike(tmp_path: Path) -> None:
    report = Report("t", "s")
    report.table(["step", "loss"], [(1, 2.6), (2, 0.0096), (3, 0.0)])
    report.table(["part", "GiB"], [("a", 0.0512), ("total", 1234.5)])
    report.table(["", "ratio"], [("a", float("nan")), ("b", 1.5)])
    report.write(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    for cell in ("2.6000", "0.0096", "0.0000", "0.051", "1,234.500", "nan", "1.50"):
        assert f">{cell}</td>" in text
