"""What `score`, `audit` and `generate` share: arguments, the default engine, progress, lines for checks."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.engine.package import available_engines


class CheckLike(Protocol):
    """What a line about a check needs, of a live audit or of a stored one."""

    @property
    def name(self) -> str: ...
    @property
    def passed(self) -> bool: ...
    @property
    def warning(self) -> bool: ...
    @property
    def measured(self) -> float | None: ...
    @property
    def limit(self) -> float: ...
    @property
    def detail(self) -> str: ...


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """--data and --max-symbols."""
    parser.add_argument("--data", metavar="NAME", help="dataset whose held-out text is scored; default: the spec's")
    parser.add_argument(
        "--max-symbols", type=positive, metavar="N", help="score a fixed sample of documents of at most N symbols"
    )


def positive(text: str) -> int:
    """An integer above zero, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: must be at least 1")
    return value


def default_engine() -> str:
    """The preferred engine that is installed, or the NumPy oracle where none is."""
    return next(iter(available_engines()), "numpy")


@contextlib.contextmanager
def progress_bar(out: Console, title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields the function to call with (done, in all)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bars:
        task = bars.add_task(escape(title), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def check_lines(checks: Iterable[CheckLike]) -> list[str]:
    """One line of rich markup per check: verdict, name, what was measured."""
    return [f"{verdict(check)} {check.name}: {escape(check.detail)}" for check in checks]


def verdict(check: CheckLike) -> str:
    """`passed`, `warning` or `FAILED`, coloured."""
    if not check.passed:
        return "[red]FAILED [/]"
    return "[yellow]warning[/]" if check.warning else "[green]passed [/]"
