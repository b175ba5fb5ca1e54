"""Line, bar and budget charts as SVG elements: pure functions of numbers, coloured by the classes of the page.

Coordinates are those of the viewBox, in pixels at full width; y points down.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from shared.views.report.markup import Element, element

Format = Callable[[float], str]
Axis = Literal["near", "zero", "log"]

LEFT, RIGHT, TOP, BOTTOM = 56.0, 14.0, 30.0, 40.0
# More points than this cannot be told apart at any size a report is read at.
MOST_POINTS = 600
BAR_HEIGHT, BAR_PITCH, BAR_NAMES, BAR_VALUES = 18.0, 30.0, 130.0, 170.0
LOG_MANTISSAS = ((1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0), (1.0, 2.0, 5.0), (1.0,))


@dataclass(frozen=True)
class Point:
    """A point of a curve, with an interval for its value where there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A curve; `style` is `first` or `second`; a marked one shows every point, with its value when pointed at."""

    name: str
    points: Sequence[Point]
    style: str = "first"
    marked: bool = False


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
class _Scale:
    """Values from low to high on coordinates from start to stop."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Coordinate of a value; what lies outside is shown at the edge."""
        inside = min(max(value, self.low), self.high)
        share = (
            math.log(inside / self.low) / math.log(self.high / self.low)
            if self.log
            else (inside - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        return log_ticks(self.low, self.high, most) if self.log else ticks(self.low, self.high, most)


def line_chart(
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    width: float = 720.0,
    height: float = 300.0,
    axis: Axis = "near",
    y_format: Format = "{:g}".format,
) -> Element:
    """Curves over x >= 0, which counts something.

    The y axis lies near the values, or starts from zero, or is logarithmic if all values are positive.
    """
    shown = [Series(one.name, finite_points(one.points), one.style, one.marked) for one in series]
    values = [point.y for one in shown for point in one.points]
    svg = _svg(width, height, f"{y_name} over {x_name}: {', '.join(one.name for one in shown)}")
    if not values:
        svg.append(element("text", "no points were logged", x=_at(width / 2), y=_at(height / 2), class_="middle"))
        return svg
    log = axis == "log" and min(values) > 0.0
    last_x = max(point.x for one in shown for point in one.points)
    x_scale = _Scale(0.0, max(last_x, 1.0), LEFT, width - RIGHT)
    y_scale = _Scale(*_limits(values, log, axis == "zero"), height - BOTTOM, TOP, log)
    most_x = 8 if width > 500 else 4
    most_y = 6 if height > 250 else 4
    _draw_axes(svg, x_scale, y_scale, (most_x, most_y), y_format)
    svg.append(element("text", x_name, x=_at(width - RIGHT), y=_at(height - 6), class_="end"))
    svg.append(element("text", y_name + (" (log scale)" if log else ""), x=0, y=14))
    if len(shown) > 1:
        _draw_legend(svg, shown, width)
    for one in shown:
        _draw_series(svg, one, x_scale, y_scale)
    return svg


def bar_chart(bars: Sequence[Bar], name: str, width: float = 720.0) -> Element:
    """Horizontal bars from zero, one under the other, with whiskers for intervals."""
    svg = _svg(width, BAR_PITCH * len(bars), f"{name}: " + ", ".join(f"{bar.name} {bar.text}" for bar in bars))
    longest = max((max(bar.value, bar.high or 0.0) for bar in bars), default=0.0)
    scale = _Scale(0.0, longest if longest > 0.0 else 1.0, BAR_NAMES, width - BAR_VALUES)
    for index, bar in enumerate(bars):
        top = index * BAR_PITCH + (BAR_PITCH - BAR_HEIGHT) / 2
        middle = top + BAR_HEIGHT / 2
        style = "first" if bar.emphasised else "other"
        end = scale(bar.value)
        weight = " strong" if bar.emphasised else ""
        svg.append(element("text", bar.name, x=_at(BAR_NAMES - 10), y=_at(middle + 4), class_="end" + weight))
        svg.append(
            element(
                "rect", x=_at(BAR_NAMES), y=_at(top), width=_at(end - BAR_NAMES), height=_at(BAR_HEIGHT), class_=style
            )
        )
        if bar.low is not None and bar.high is not None:
            left, right = scale(bar.low), scale(bar.high)
            svg.append(element("path", d=f"M{left:.1f},{middle:.1f}H{right:.1f}", class_="whisker"))
            for x in (left, right):
                svg.append(element("path", d=f"M{x:.1f},{middle - 4:.1f}v8", class_="whisker"))
            end = max(end, right)
        svg.append(element("text", bar.text, x=_at(end + 8), y=_at(middle + 4), class_="value" + weight))
    return svg


def budget_chart(parts: Sequence[tuple[str, float]], limit: float, name: str, width: float = 720.0) -> Element:
    """Parts end to end on one bar of the length of `limit`; where they are more, a line marks the limit."""
    svg = _svg(width, 20.0, name)
    total = sum(size for _, size in parts)
    scale = _Scale(0.0, max(total, limit, 1.0), 0.0, width)
    svg.append(element("rect", x=0, y=1, width=_at(scale(limit)), height=18, class_="empty"))
    start = 0.0
    for (part, size), style in zip(parts, itertools.cycle(("first", "second")), strict=False):
        left, right = scale(start), scale(start + size)
        title = element("title", part)
        svg.append(element("rect", title, x=_at(left), y=1, width=_at(right - left), height=18, class_=style))
        start += size
    if total > limit:
        svg.append(element("path", d=f"M{scale(limit):.1f},0V20", class_="limit"))
    return svg


def finite_points(points: Sequence[Point]) -> list[Point]:
    """The points that are numbers, in order; where there are very many, means of neighbours."""
    known = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    size = math.ceil(len(known) / MOST_POINTS)
    if size < 2:
        return known
    groups = [known[first : first + size] for first in range(0, len(known), size)]
    # A group stands where it ends, so that the curve ends where the run did.
    return [Point(group[-1].x, math.fsum(point.y for point in group) / len(group)) for group in groups]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values in [low, high], low < high, about `most` of them and at most one more."""
    raw = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1.0, 2.0, 5.0, 10.0) if factor * unit >= raw * (1.0 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if first > last:
        # The whole range lies between two of them.
        return ticks(low, high, most + 1)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Values for a logarithmic axis: round ones of few digits, or evenly spaced ones for a narrow range."""
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for mantissas in LOG_MANTISSAS:
        found = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
        found = [value for value in found if low <= value <= high]
        if 3 <= len(found) <= most + 1:
            return found
    return [value for value in ticks(low, high, most) if value > 0.0]


def _limits(values: Sequence[float], log: bool, from_zero: bool) -> tuple[float, float]:
    """Ends of the y axis: the values with a little room around them."""
    low, high = min(values), max(values)
    if from_zero and low >= 0.0:
        return 0.0, high * 1.08 or 1.0
    if log:
        room = max((high / low) ** 0.04, 1.02)
        return low / room, high * room
    room = max((high - low) * 0.06, abs(high) * 0.02, 1e-9)
    return low - room, high + room


def _draw_axes(svg: Element, x: _Scale, y: _Scale, most: tuple[int, int], y_format: Format) -> None:
    for value in y.ticks(most[1]):
        position = y(value)
        svg.append(element("path", d=f"M{x.start:.1f},{position:.1f}H{x.stop:.1f}", class_="grid"))
        svg.append(element("text", y_format(value), x=_at(x.start - 8), y=_at(position + 4), class_="end"))
    svg.append(element("path", d=f"M{x.start:.1f},{y.start:.1f}H{x.stop:.1f}", class_="axis"))
    for value in x.ticks(most[0]):
        if value == round(value):
            position = x(value)
            svg.append(element("path", d=f"M{position:.1f},{y.start:.1f}v4", class_="axis"))
            svg.append(element("text", f"{value:,.0f}", x=_at(position), y=_at(y.start + 18), class_="middle"))


def _draw_series(svg: Element, series: Series, x: _Scale, y: _Scale) -> None:
    positions = [f"{x(point.x):.1f},{y(point.y):.1f}" for point in series.points]
    if len(positions) > 1:
        svg.append(element("path", d="M" + "L".join(positions), class_=f"line {series.style}"))
    if not series.marked and len(positions) > 1:
        return
    for point in series.points:
        text = f"{series.name}, {point.x:,.0f}: {point.y:.4f}"
        if point.low is not None and point.high is not None:
            text += f" ({point.low:.4f} to {point.high:.4f})"
            bottom, top = y(point.low), y(point.high)
            svg.append(element("path", d=f"M{x(point.x):.1f},{bottom:.1f}V{top:.1f}", class_=f"line {series.style}"))
        mark = {"cx": _at(x(point.x)), "cy": _at(y(point.y)), "r": 4, "class_": f"mark {series.style}"}
        svg.append(element("circle", element("title", text), **mark))


def _draw_legend(svg: Element, series: Sequence[Series], width: float) -> None:
    """Names at the top right, the last one at the edge; seven pixels a letter is enough room."""
    right = width - RIGHT
    for one in reversed(series):
        left = right - 7.0 * len(one.name)
        svg.append(element("path", d=f"M{left - 26:.1f},10H{left - 8:.1f}", class_=f"line key {one.style}"))
        svg.append(element("text", one.name, x=_at(left), y=14))
        right = left - 44.0


def _svg(width: float, height: float, label: str) -> Element:
    return element("svg", viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label)


def _at(coordinate: float) -> str:
    return f"{coordinate:.1f}"
