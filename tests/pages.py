"""Reads a report page as a browser would: elements, tables, and what is shown."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br"}


class Page(HTMLParser):
    """A page, with `tables[heading]`: the rows of cells of the tables below each heading, in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.figures: dict[str, str] = {}
        self.tables: dict[str, list[list[list[str]]]] = {}
        self._heading, self._figure = "", ""
        self.feed(path.read_text("utf-8"))
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h2", "h3"):
            self._heading = ""
        elif tag == "b":
            self._figure = ""
        elif tag == "table":
            self.tables.setdefault(self._heading, []).append([])
        elif tag == "tr":
            self.tables[self._heading][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self._heading][-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "h2" in self.open or "h3" in self.open:
            self._heading += data
        elif "td" in self.open or "th" in self.open:
            self.tables[self._heading][-1][-1][-1] += data
        elif "b" in self.open:
            self._figure += data
        elif "span" in self.open and self._figure:
            self.figures[data] = self._figure
            self._figure = ""

    def numbers(self, heading: str, which: int = 0) -> dict[str, dict[str, str]]:
        """A table by the first cell of each row and the title of each column."""
        titles, *rows = self.tables[heading][which]
        return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}

    def assert_harmless(self) -> None:
        """Nothing in it runs, and nothing is fetched."""
        names = {name for name, _ in self.elements}
        assert not names & {"script", "img", "iframe", "object", "embed", "link", "form", "a", "base", "foreignObject"}
        for _, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on") or name in ("href", "src")]
