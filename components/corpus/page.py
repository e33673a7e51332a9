"""Pieces of a report page: one HTML file that opens from a disk, in MLflow's artifact viewer, and without a network.

Text becomes HTML in `tag` alone, which escapes everything that is not made by `tag` itself, so a document cannot break
out of the page; the page's policy forbids scripts as well. Plots are SVG written by hand: the reader's fonts show any
script, the same values give the same bytes, and nothing takes a second to import as matplotlib does. Not for plots of
points or with two scales.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Mapping, Sequence

import numpy as np

from components.corpus.statistics import LengthHistogram, edges_of

_COLORS = ("#2f6db3", "#d9822b", "#8a4fa3", "#4b8b3b")
_STYLE = """
body { margin:0; background:#f6f7f9; color:#1b2430; font:15px/1.5 system-ui, "Noto Sans", "Noto Sans CJK SC",
  "PingFang SC", "Microsoft YaHei", sans-serif }
main { max-width:1080px; margin:0 auto; padding:24px 20px 60px }
h1 { font-size:24px; margin:0 } h2 { font-size:18px; margin:0 0 8px } h3 { font-size:14px; margin:18px 0 4px }
p { margin:4px 0 10px }
.soft { color:#5b6878 }
.ok { color:#2b7a3d; font-weight:600 }
.bad { color:#b3261e; font-weight:600 }
section { background:#fff; border:1px solid #e1e5ea; border-radius:8px; padding:16px 20px; margin-top:16px;
  overflow-x:auto }
.tiles { display:flex; flex-wrap:wrap; gap:10px; margin-top:16px }
.tiles div { flex:1 1 95px; background:#fff; border:1px solid #e1e5ea; border-radius:8px; padding:10px 14px }
.tiles b { display:block; font-size:20px; font-variant-numeric:tabular-nums }
.tiles span { color:#5b6878; font-size:13px }
table { border-collapse:collapse; font-size:14px } table.wide { width:100% }
th { text-align:left; font-weight:600; color:#5b6878; border-bottom:2px solid #e1e5ea; padding:4px 14px 4px 0;
  vertical-align:bottom }
td { border-bottom:1px solid #edf0f3; padding:4px 14px 4px 0; vertical-align:top; overflow-wrap:break-word }
th.number, td.number { text-align:right; font-variant-numeric:tabular-nums } td.number { white-space:nowrap }
tr.total td { font-weight:600 }
td.bar { width:45% }
td.bar i { display:block; height:13px; margin-top:4px; min-width:1px; border-radius:2px }
.text { white-space:pre-wrap; overflow-wrap:anywhere; unicode-bidi:isolate; max-height:15em; overflow-y:auto }
.cluster { display:grid; grid-template-columns:repeat(auto-fit, minmax(260px, 1fr)); gap:8px; margin-bottom:14px }
.cluster > div { border:1px solid #e1e5ea; border-radius:6px; padding:8px 10px; font-size:14px }
mark { background:#ffe2a8 }
code, .token { font:13px/1.5 ui-monospace, "Noto Sans Mono", "Noto Sans Mono CJK SC", monospace }
.token { display:inline-block; background:#eef1f5; border-radius:4px; padding:0 5px; margin:2px; white-space:pre-wrap
  }
svg { display:block; width:100%; height:auto } svg text { font-size:12px; fill:#5b6878 }
.legend span { margin-right:16px }
.legend i { display:inline-block; width:11px; height:11px; border-radius:2px; margin-right:5px }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_UNSEEN = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_WORDS = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff]+|\s+|.", re.DOTALL)
_MAX_COMPARED = 400
_MAX_BINS = 64
_WIDTH, _HEIGHT, _LEFT, _FOOT = 1000, 220, 8, 40


class Html(str):
    """Text that is HTML already. Only functions of this module make it."""

    __slots__ = ()


Cell = Html | str | int | float | None


def number(value: float | int | None, digits: int = 3) -> str:
    """For people: 1,234,567; 3.142; a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{round(value):,}"
    return f"{value:.{digits}g}" if abs(value) < 1 else f"{value:.{digits - 1}f}".rstrip("0").rstrip(".")


def percent(part: float, whole: float) -> str:
    """A share for people; a dash where there is no whole."""
    if not whole:
        return "–"
    share = 100 * part / whole
    return f"{share:.1f} %" if share >= 1 else f"{share:.2g} %"


def tag(name: str, *content: Cell, **attributes: str | float) -> Html:
    """An element; what is no `Html` is escaped, and control characters are shown as their pictures.

    Args:
        name: of the element.
        content: in order; None is left out.
        attributes: by name, `class_` for class, `view_box` for viewBox.
    """
    names = {"class_": "class", "view_box": "viewBox"}
    told = "".join(
        f' {names.get(key, key.replace("_", "-"))}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{told}>{joined(*content)}</{name}>")


def joined(*content: Cell) -> Html:
    """One after another, escaped where it is no `Html`."""
    return Html("".join(_escaped(part) for part in content if part is not None))


def text(value: str) -> Html:
    """A document's text: line ends and its own direction are kept."""
    return tag("div", value, class_="text", dir="auto")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, has_total: bool = False, is_wide: bool = False
) -> Html:
    """A table; columns of numbers alone are set to the right.

    Args:
        columns: their titles.
        rows: cells; numbers are written for people.
        has_total: the last row is the sum of the others.
        is_wide: it takes all of the page's width.
    """
    if not rows:
        return tag("p", "None.", class_="soft")
    numeric = [all(_is_numeric(row[place]) for row in rows) for place in range(len(columns))]

    def cells(kind: str, row: Sequence[Cell]) -> Html:
        made = []
        for value, is_number in zip(row, numeric, strict=True):
            shown: Cell = number(value) if not isinstance(value, str) else value
            extra = {"class_": "number"} if is_number else {}
            is_cell = isinstance(value, Html) and value.startswith("<td")
            made.append(Html(value) if is_cell else tag(kind, shown, **extra))
        return joined(*made)

    body = [
        tag("tr", cells("td", row), **({"class_": "total"} if has_total and place == len(rows) - 1 else {}))
        for place, row in enumerate(rows)
    ]
    return tag("table", tag("tr", cells("th", columns)), *body, class_="wide" if is_wide else "plain")


def bars(columns: Sequence[str], rows: Sequence[tuple[Cell, float, str]], color: int = 0) -> Html:
    """Horizontal bars: a table of a name, a value, and what is said of it besides (empty for all: no column).

    Args:
        columns: titles of the name, the value and, where one is used, the remark.
        rows: name, value, remark.
        color: position of the colour.
    """
    most = max((value for _, value, _ in rows), default=0) or 1
    shown: list[list[Cell]] = []
    for name, value, remark in rows:
        style = f"width:{100 * value / most:.1f}%;background:{_COLORS[color]}"
        shown.append([name, value, remark, tag("td", tag("i", style=style) if value else None, class_="bar")])
    if len(columns) == 2:
        shown = [[name, value, bar] for name, value, _, bar in shown]
    return table([*columns, ""], shown, is_wide=True)


def lengths_plot(series: Mapping[str, LengthHistogram], unit: str, of: str = "documents") -> Html:
    """Distributions of lengths on a logarithmic scale, each as shares of its own documents: the area under each is the
    same, so that a few dropped documents can be compared with many kept ones.

    Args:
        series: histogram by name; empty ones are left out.
        unit: of the lengths.
        of: what has the lengths.
    """
    filled = {name: histogram for name, histogram in series.items() if histogram.num}
    if not filled:
        return tag("p", "None.", class_="soft")
    for per_octave in (16, 8, 4):  # the finest that is readable
        counts = {name: histogram.by_octave(per_octave) for name, histogram in filled.items()}
        used = np.flatnonzero(sum(counts.values()))
        first, last = max(int(used[0]) - 1, 0), int(used[-1]) + 1
        if last - first <= _MAX_BINS:
            break
    edges = np.maximum(edges_of(per_octave)[first : last + 2], 0.7)  # 0 has no place on a logarithmic scale
    widths = np.log2(edges[1:] / edges[:-1])
    heights = {name: of[first : last + 1] / of.sum() / widths for name, of in counts.items()}
    highest = max(float(height.max()) for height in heights.values())
    scale = (_WIDTH - 2 * _LEFT) / float(widths.sum())
    at = _LEFT + scale * np.concatenate([[0], np.cumsum(widths)])
    drawn: list[Html] = []
    for place, (name, height) in enumerate(heights.items()):
        tops = _HEIGHT - (_HEIGHT - 10) * height / highest
        path = f"M{at[0]:.1f} {_HEIGHT}" + "".join(
            f"V{top:.1f}H{right:.1f}" for top, right in zip(tops, at[1:], strict=True)
        )
        color = _COLORS[place % len(_COLORS)]
        drawn.append(tag("path", d=f"{path}V{_HEIGHT}Z", fill=color, fill_opacity=0.25, stroke=color, stroke_width=1.5))
        for low, high, count, left, right in zip(
            edges[:-1], edges[1:], counts[name][first : last + 1], at[:-1], at[1:], strict=True
        ):
            if count:
                said = tag("title", f"{name}: {number(int(count))} of {_between(low, high)} {unit}")
                begin, width = f"{left:.1f}", f"{right - left:.1f}"
                drawn.append(tag("rect", said, fill="transparent", x=begin, y=0, width=width, height=_HEIGHT))
    drawn.append(tag("path", d=f"M{_LEFT} {_HEIGHT}H{_WIDTH - _LEFT}", stroke="#a9b4c1"))
    for power in range(int(np.ceil(np.log2(edges[0]))), int(np.log2(edges[-1])) + 1):
        x = _LEFT + scale * (power - float(np.log2(edges[0])))
        drawn.append(tag("path", d=f"M{x:.1f} {_HEIGHT}v5", stroke="#a9b4c1"))
        drawn.append(tag("text", number(2**power), x=f"{x:.1f}", y=_HEIGHT + 18, text_anchor="middle"))
    drawn.append(tag("text", unit, x=_WIDTH / 2, y=_HEIGHT + 35, text_anchor="middle"))
    names = [
        tag("span", tag("i", style=f"background:{_COLORS[place % len(_COLORS)]}"), name)
        for place, name in enumerate(filled)
    ]
    rows: list[list[Cell]] = [
        [name, one.num, one.least, *map(one.quantile, (0.1, 0.5, 0.9, 0.99)), one.most, one.mean]
        for name, one in filled.items()
    ]
    heads = ["", of, "least", "10 %", "median", "90 %", "99 %", "most", "mean"]
    return joined(
        tag("p", *names, class_="legend"),
        tag("svg", *drawn, view_box=f"0 0 {_WIDTH} {_HEIGHT + _FOOT}", role="img", aria_label=f"{of} by {unit}"),
        table(heads, rows),
        tag(
            "p",
            f"Height: share of the {of} for each doubling of {unit}. Quantiles are exact to 5 %.",
            class_="soft",
        ),
    )


def differences(one: str, other: str) -> Html:
    """`other`, with what is not in `one` marked."""
    first, second = _WORDS.findall(one)[:_MAX_COMPARED], _WORDS.findall(other)[:_MAX_COMPARED]
    parts = []
    for kind, _, _, begin, end in difflib.SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        part = "".join(second[begin:end])
        parts.append(tag("mark", part) if kind in ("replace", "insert") else joined(part))
    return tag("div", *parts, class_="text", dir="auto")


def tokens(pieces: Sequence[str]) -> Html:
    """Tokens, each in its box."""
    return tag("p", *(tag("span", piece, class_="token") for piece in pieces)) if pieces else tag("p", "None.")


def page(title: str, about: str, figures: Mapping[str, Cell], sections: Sequence[tuple[str, Html]]) -> str:
    """The page.

    Args:
        title: of the page.
        about: a sentence on it.
        figures: the few numbers that matter most, by what they are.
        sections: title and content, in order.
    """
    tiles = [tag("div", tag("b", _shown(value)), tag("span", name)) for name, value in figures.items()]
    body = tag(
        "main",
        tag("h1", title),
        tag("p", about, class_="soft"),
        tag("div", *tiles, class_="tiles"),
        *(tag("section", tag("h2", name), content) for name, content in sections),
    )
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'


def _is_numeric(value: Cell) -> bool:
    return not isinstance(value, str) or value == "–" or value.endswith(" %")


def _shown(value: Cell) -> str:
    return value if isinstance(value, str) else number(value)


def _between(low: float, high: float) -> str:
    first, last = round(low) if low >= 1 else 0, max(round(high) - 1, 0)
    return f"{first:,}" if first >= last else f"{first:,} to {last:,}"


def _escaped(part: Cell) -> str:
    if isinstance(part, Html):
        return part
    return html.escape(_shown(part).translate(_UNSEEN))
