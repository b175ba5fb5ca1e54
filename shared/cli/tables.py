"""The tables of commands, and how one that is wider than the terminal is shown: no figure and no name is cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# A column of words becomes no narrower than this before columns are moved to another piece.
NARROW_COLUMNS = 20


def make_table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table with columns of words, then columns of numbers."""
    table = Table(*words, title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def fitting(table: Table, console: Console, options: ConsoleOptions) -> list[Table]:
    """The table where it fits the width, otherwise with its words in more lines, otherwise in pieces.

    Each piece begins with the first column. Rich alone would cut a number or a name that does not fit.
    """
    width = partial(_width, console, options)
    cells = [[column.header, *column.cells] for column in table.columns]
    wide = [max(map(width, column)) for column in cells]
    whole = [column.no_wrap or column.justify == "right" for column in table.columns]
    least = [size if kept else min(size, NARROW_COLUMNS) for size, kept in zip(wide, whole, strict=True)]
    least[0] = min(wide[0], options.max_width // 2)

    def room(count: int) -> int:
        empty = _like(table)
        for _ in range(count):
            empty.add_column(width=1)
        return max(count, options.max_width - (width(empty) - count))

    if sum(wide) <= room(len(wide)):
        return [table]
    chosen = [[0]]
    for index in range(1, len(wide)):
        longer = [*chosen[-1], index]
        if len(longer) > 2 and sum(least[each] for each in longer) > room(len(longer)):
            longer = [0, index]
            chosen.append(longer)
        chosen[-1] = longer
    return [_piece(table, each, _shares(each, wide, least, room(len(each)))) for each in chosen]


def _like(table: Table) -> Table:
    return Table(box=table.box, padding=table.padding, header_style=table.header_style)


def _piece(table: Table, chosen: Sequence[int], widths: Sequence[int]) -> Table:
    """These columns of a table with these widths. Only the piece with the second column has the title and every row."""
    piece = _like(table)
    is_first = chosen[1:2] == [1]
    if is_first:
        piece.title, piece.title_justify = table.title, table.title_justify
    columns = [table.columns[index] for index in chosen]
    for column, width in zip(columns, widths, strict=True):
        piece.add_column(column.header, justify=column.justify, style=column.style, overflow="fold", width=width)
    for row, *cells in zip(table.rows, *(column.cells for column in columns), strict=True):
        if is_first or any(map(_says_something, cells[1:])):
            piece.add_row(*cells, style=row.style, end_section=row.end_section)
    return piece


def _shares(chosen: Sequence[int], wide: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """How the columns share the room: the widest that has more than its least gives way first, then the widest."""
    sizes = [wide[index] for index in chosen]
    while sum(sizes) > room:
        over = [place for place, index in enumerate(chosen) if sizes[place] > least[index]] or range(len(sizes))
        sizes[max(over, key=sizes.__getitem__)] -= 1
    return sizes


def _width(console: Console, options: ConsoleOptions, cell: RenderableType) -> int:
    return Measurement.get(console, options.update(max_width=10_000), cell).maximum


def _says_something(cell: RenderableType) -> bool:
    return bool(cell.plain if isinstance(cell, Text) else cell)
