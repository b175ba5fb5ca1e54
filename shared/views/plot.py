"""A curve in braille characters: every character cell is a grid of 2 by 4 dots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from rich.text import Text

BLANK = 0x2800
# Columns of the labels and the axis beside a plot.
MARGIN = 8
CUT_FRAC = 0.05
MARK = "\u25cf"
# Of labels and axes: a fixed grey is hard to read on either a light or a dark background.
QUIET = "dim"
# Bit of the dot at (column, row from the top) within a cell, as Unicode numbers them.
DOT_BITS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


class History:
    """A curve of (position in [0, 1], value) that never holds more than a few thousand points."""

    MOST_POINTS = 4096

    def __init__(self, points: Sequence[tuple[float, float]] = ()) -> None:
        self._points: list[tuple[float, float]] = []
        for position, value in points:
            self.add(position, value)

    def add(self, position: float, value: float) -> None:
        """Append one point; neighbours are merged when there are too many."""
        kept = self._points if len(self._points) < self.MOST_POINTS else self._merged()
        # One assignment, because another thread may be drawing.
        self._points = [*kept, (position, value)]

    def points(self) -> list[tuple[float, float]]:
        """The points, in order."""
        return self._points

    def _merged(self) -> list[tuple[float, float]]:
        pairs = zip(self._points[::2], self._points[1::2], strict=True)
        return [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in pairs]


def column_values(points: Sequence[tuple[float, float]], num_columns: int) -> list[float]:
    """The curve at dot columns 0, 1, ... up to its last point: means, and straight lines across gaps."""
    sums: dict[int, list[float]] = {}
    for position, value in points:
        column = min(num_columns - 1, int(position * num_columns))
        total = sums.setdefault(column, [0.0, 0.0])
        total[0] += value
        total[1] += 1.0
    known = sorted((column, total / count) for column, (total, count) in sums.items())
    if not known:
        return []
    values = [known[0][1]] * (known[0][0] + 1)
    for (left, start), (right, stop) in itertools.pairwise(known):
        values += [start + (stop - start) * (column - left) / (right - left) for column in range(left + 1, right + 1)]
    return values


def plot_lines(
    points: Sequence[tuple[float, float]],
    validations: Sequence[tuple[float, float]],
    width: int,
    rows: int,
    end: str,
) -> list[Text]:
    """`rows` lines of at most `width` characters and an axis below: both curves in bits per byte over the progress from
    0 to `end`, on a logarithmic scale. Points are (progress in [0, 1], bits per byte); validations are marked.

    The scale leaves out what is above it in the first CUT_FRAC of the curve: the first steps would flatten the rest.
    """
    columns = max(4, width - MARGIN)
    values = column_values(points, 2 * columns)
    marks = {min(columns - 1, int(place * columns)): value for place, value in validations}
    if not values:
        return [Text("bpb", style=QUIET), *(Text() for _ in range(rows))]
    low, high = _limits(values, list(marks.values()), 2 * columns)
    found = []
    for index, line in enumerate(braille_lines(values, columns, rows, low, high)):
        text = Text(no_wrap=True)
        text.append(f"{_label(index, rows, low, high):>{MARGIN - 2}} \u2502", style=QUIET)
        text.append(line, style="cyan")
        for column, value in marks.items():
            if _dot_row(value, low, high, 4 * rows) // 4 == index:
                text.plain = text.plain[: MARGIN + column] + MARK + text.plain[MARGIN + column + 1 :]
                text.stylize("green", MARGIN + column, MARGIN + column + 1)
        found.append(text)
    left = "0"
    key = f"bpb, {MARK} validation" if marks else "bpb"
    space = columns - len(left) - len(end)
    middle = f"{key:^{space}}" if space > len(key) + 1 else " " * max(space, 1)
    axis = f"{' ' * (MARGIN - 1)}\u2514{left}{middle}{end}"
    return [*found, Text(axis[:width], style=QUIET, no_wrap=True)]


def _limits(values: Sequence[float], marks: Sequence[float], columns: int) -> tuple[float, float]:
    """Ends of the scale for a curve of dot columns and its marks."""
    late = values[min(int(CUT_FRAC * columns), len(values) // 2) :]
    return min([*late, *marks]), max([*late, *marks])


def _label(row: int, rows: int, low: float, high: float) -> str:
    """The value at the top, the middle or the bottom row; nothing at others."""
    if high <= low:
        return f"{low:.3f}" if row == rows // 2 else ""
    if row not in (0, rows // 2, rows - 1):
        return ""
    share = (0.0, 0.5, 1.0)[(0, rows // 2, rows - 1).index(row)]
    return f"{math.exp(math.log(high) + share * (math.log(low) - math.log(high))):.3f}"


def braille_lines(values: Sequence[float], width: int, height: int, low: float, high: float) -> list[str]:
    """`height` lines of `width` characters: values (one a dot column) on a logarithmic scale from low to high."""
    dot_rows = 4 * height
    cells = [[0] * width for _ in range(height)]
    previous: int | None = None
    for column, value in enumerate(values[: 2 * width]):
        row = _dot_row(value, low, high, dot_rows)
        first, last = (row, row) if previous is None else sorted((row, previous))
        for dot in range(first, last + 1):
            cells[dot // 4][column // 2] |= DOT_BITS[column % 2][dot % 4]
        previous = row
    return ["".join(chr(BLANK + bits) for bits in line) for line in cells]


def _dot_row(value: float, low: float, high: float, dot_rows: int) -> int:
    """Row of a value, 0 at the top."""
    if high <= low:
        return dot_rows // 2
    share = (math.log(high) - math.log(min(max(value, low), high))) / (math.log(high) - math.log(low))
    return min(dot_rows - 1, int(share * dot_rows))
