"""Bars beside their names and figures: letters are HTML and keep their size, only the bars follow the page's width.

Lengths are shares of the width in per cent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from shared.views.report.markup import Element, element


@dataclass(frozen=True)
class Bar:
    """A bar from zero; the emphasised one is what the chart is about. `text` stands at its end."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    emphasised: bool = False


@dataclass(frozen=True)
class Mark:
    """A value on either side of zero with its interval, None where there is none."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None


def bar_chart(bars: Sequence[Bar], label: str) -> Element:
    """Horizontal bars from zero, one under the other, with whiskers for intervals."""
    ends = [end for bar in bars for end in (bar.value, bar.high or 0.0) if math.isfinite(end)]
    longest = max(ends, default=0.0) or 1.0
    chart = element("div", class_="bars", role="img", aria_label=_label(label, bars))
    for bar in bars:
        style = "first" if bar.emphasised else "other"
        drawn = _svg(_rect(0.0, bar.value / longest, style))
        if bar.low is not None and bar.high is not None:
            drawn.extend(_whisker(bar.low / longest, bar.high / longest))
        _add_row(chart, bar.name, drawn, bar.text, bar.emphasised)
    return chart


def mark_chart(marks: Sequence[Mark], label: str) -> Element:
    """Values and their intervals around a line at zero."""
    ends = [abs(end) for mark in marks for end in (mark.value, mark.low, mark.high) if end is not None]
    reach = max((end for end in ends if math.isfinite(end)), default=0.0) or 1.0
    chart = element("div", class_="bars", role="img", aria_label=_label(label, marks))

    def share(value: float) -> float:
        return 0.5 + 0.48 * value / reach

    for mark in marks:
        drawn = _svg(element("line", x1="50%", x2="50%", y1=0, y2=18, class_="axis"))
        if mark.low is not None and mark.high is not None:
            drawn.extend(_whisker(share(mark.low), share(mark.high)))
        drawn.append(element("circle", cx=_percent(share(mark.value)), cy=9, r=4, class_="first"))
        _add_row(chart, mark.name, drawn, mark.text)
    return chart


def budget_chart(parts: Sequence[tuple[str, float]], limit: float, label: str) -> Element:
    """Parts end to end on one bar of the length of `limit`; where they are more, a line marks the limit."""
    total = sum(size for _, size in parts)
    longest = max(total, limit, 1.0)
    drawn = _svg(_rect(0.0, limit / longest, "empty"), role="img", aria_label=label)
    start = 0.0
    for (part, size), style in zip(parts, itertools.cycle(("first", "second")), strict=False):
        drawn.append(_rect(start / longest, size / longest, style, part))
        start += size
    if total > limit:
        edge = _percent(limit / longest)
        drawn.append(element("line", x1=edge, x2=edge, y1=0, y2=18, class_="limit"))
    return drawn


def column_chart(columns: Sequence[Bar], label: str) -> Element:
    """Narrow columns from zero side by side, each with its text when pointed at, and the largest value above."""
    tallest = max((bar.value for bar in columns if math.isfinite(bar.value)), default=0.0) or 1.0
    drawn = element("svg", class_="columns", role="img", aria_label=_label(label, columns))
    width = 1.0 / max(len(columns), 1)
    for index, bar in enumerate(columns):
        share = min(max(bar.value / tallest, 0.0), 1.0)
        rect = {"x": _percent((index + 0.1) * width), "width": _percent(0.8 * width), "y": _percent(1.0 - share)}
        title = element("title", f"{bar.name}: {bar.text}")
        drawn.append(element("rect", title, **rect, height=_percent(share), class_="first"))
    return drawn


def _add_row(chart: Element, name: str, drawn: Element, text: str, emphasised: bool = False) -> None:
    kind = "strong" if emphasised else "span"
    chart.extend([element(kind, name), drawn, element(kind, text, class_="figure")])


def _label(label: str, rows: Sequence[Bar] | Sequence[Mark]) -> str:
    return f"{label}: " + ", ".join(f"{row.name} {row.text}" for row in rows)


def _rect(start: float, length: float, style: str, title: str = "") -> Element:
    drawn = element("rect", x=_percent(start), y=1, width=_percent(min(max(length, 0.0), 1.0)), height=16, class_=style)
    if title:
        drawn.append(element("title", title))
    return drawn


def _whisker(low: float, high: float) -> list[Element]:
    left, right = _percent(low), _percent(high)
    ends = [element("line", x1=x, x2=x, y1=5, y2=13, class_="whisker") for x in (left, right)]
    return [element("line", x1=left, x2=right, y1=9, y2=9, class_="whisker"), *ends]


def _svg(*children: Element, **attributes: object) -> Element:
    return element("svg", *children, class_="bar", **attributes)


def _percent(share: float) -> str:
    inside = share if math.isfinite(share) else 0.0
    return f"{100.0 * min(max(inside, 0.0), 1.0):.2f}%"
