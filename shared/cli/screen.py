"""The console of every command: all that people read passes through it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from shared.cli.silence import silence
from shared.cli.tables import fitting
from shared.errors import one_line, visible
from shared.views.stage_clock import StageClock, notify

# A file or a pipe has no width to keep to; a terminal that claims to be narrower than this has none that it knows of.
PIPE_COLUMNS, FEWEST_COLUMNS, TERMINAL_COLUMNS = 1000, 10, 80


class Screen(Console):
    """A console that takes no text for markup, shows control characters as escapes, and cuts nothing in a file or pipe,
    and no table anywhere.

    Once nobody reads it any more it is silent: a closed terminal or a log reader that has left ends no training. What
    else keeps stdout from being written, such as a full disk, is an OSError.
    """

    def __init__(self, *, stderr: bool = True) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        if not self.is_terminal:
            self.width = PIPE_COLUMNS
        elif self.width < FEWEST_COLUMNS:
            self.width = TERMINAL_COLUMNS

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Tables without a head are the frames of panels and bars, which have layouts of their own.
        parts: list[RenderableType] = [renderable]
        if isinstance(renderable, Table) and renderable.show_header and renderable.columns:
            parts = [*fitting(renderable, self, options or self.options)]
        for each in parts:
            segments = super().render(each, options)
            if isinstance(each, Table) and not self.is_terminal:
                segments = _trimmed(segments)
            for segment in segments:
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        if not self.is_terminal:
            return PlainStatus(status, self)
        return super().status(_text(status), **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        silence(self.file)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            if not self.stderr:
                raise
            self.on_broken_pipe()


def _trimmed(segments: Iterable[Segment]) -> Iterable[Segment]:
    """The lines of a table without blanks at their ends, which a file or a pipe has no use for."""
    for line in Segment.split_lines(segments):
        yield Segment("".join(segment.text for segment in line).rstrip() + "\n")


class PlainStatus(Status):
    """A rich status of a console that is no terminal: a line names each stage that lasts, with its time."""

    def __init__(self, status: RenderableType, console: Console) -> None:
        super().__init__(_text(status), console=console)
        self._clock = StageClock()

    def start(self) -> None:
        self._clock.start(lambda time_text: notify(self.console, one_line(f"{self.status}, {time_text}") + "\n"))

    def update(self, status: RenderableType | None = None, **options: Any) -> None:
        self.status = self.status if status is None else _text(status)
        self.start()

    def stop(self) -> None:
        self._clock.stop()


def _text(status: RenderableType) -> RenderableType:
    """No markup in it."""
    return Text(status) if isinstance(status, str) else status
