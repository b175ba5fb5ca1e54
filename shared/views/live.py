"""The live view for terminals: progress, the loss as a curve, and the figures worth watching."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.runs.observer import RunStart, StepReport, ValidationReport
from shared.units import format_bytes, format_clock, format_count, format_duration
from shared.views.plain import STOP_NOTICE, notify, score_text, start_lines
from shared.views.plot import History, braille_lines, column_values

MOST_COLUMNS = 120
REFRESH_PER_S = 4
END_PHASES = ("finished", "interrupted", "failed")
SHOW_CURSOR = "\x1b[?25h"
LABEL = "grey62"
# Rows of the view that are not the plot, and the plot's own limits.
OTHER_ROWS, LEAST_PLOT_ROWS, MOST_PLOT_ROWS = 12, 2, 7


class LiveObserver:
    """Redraws a panel in place. State is set by the loop and read by the drawing thread, one field at a time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.start: RunStart | None = None
        self.report: StepReport | None = None
        self.validation: ValidationReport | None = None
        self.checkpoint_step: int | None = None
        self.history = History()
        self.phase = "starting"
        self.phase_done: tuple[int, int] | None = None
        self.phase_start_s = 0.0
        self.stopping = False
        self._live = Live(self, console=console, refresh_per_second=REFRESH_PER_S)

    def __enter__(self) -> LiveObserver:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def on_start(self, start: RunStart) -> None:
        for line in start_lines(start):
            self.console.print(line, markup=False, highlight=False, style=LABEL)
        self.start, self.validation = start, start.validation
        self.history = History(start.history)
        self.phase = "training"
        self._live.start()

    def on_step(self, report: StepReport) -> None:
        self.phase, self.phase_done, self.report = "training", None, report
        self.history.add(report.progress_frac, report.bpb)

    def on_phase(self, phase: str) -> None:
        self.phase, self.phase_done, self.phase_start_s = phase, None, time.monotonic()

    def on_progress(self, done: int, total: int) -> None:
        self.phase_done = (done, total)

    def on_validation(self, report: ValidationReport) -> None:
        self.phase, self.phase_done, self.validation = "training", None, report

    def on_checkpoint(self, step: int, path: Path) -> None:
        self.checkpoint_step = step

    def on_warning(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    def on_end(self, status: str) -> None:
        self.phase, self.phase_done, self.stopping = status, None, False

    def on_stop_requested(self) -> None:
        self.stopping = True
        # The next signal ends the process without cleaning up: give the cursor back now.
        notify(self.console, SHOW_CURSOR)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        start = self.start
        if start is None:
            return
        width = min(options.max_width, MOST_COLUMNS)
        rows = min(MOST_PLOT_ROWS, max(LEAST_PLOT_ROWS, console.height - OTHER_ROWS))
        parts: list[RenderableType] = [self._bar(start), Text(), *self._plot(width - 4, rows), Text(), self._facts()]
        if self.stopping:
            parts.append(Text(STOP_NOTICE, style="bold yellow"))
        title = Text.assemble((start.spec.name, "bold"), f" on {start.engine}")
        subtitle = Text(str(start.run_path), style=LABEL, overflow="ellipsis", no_wrap=True)
        yield Panel(
            Group(*parts),
            title=title,
            subtitle=subtitle,
            width=width,
            box=box.ROUNDED,
            border_style="cyan",
            padding=(0, 1),
        )

    def _bar(self, start: RunStart) -> Table:
        """One line: the phase, how far it is, how long it will take."""
        report = self.report
        share: float | None
        if self.phase_done is not None:
            done, total = self.phase_done
            share = done / total
            spent_s = time.monotonic() - self.phase_start_s
            right = f"{format_count(done)}/{format_count(total)} symbols"
            left_s: float | None = spent_s / done * (total - done) if done else None
        elif self.phase in ("training", *END_PHASES):
            step = report.step if report else start.step
            share = report.progress_frac if report else start.progress_frac
            right = f"step {step}/{start.spec.training.steps}"
            left_s = report.left_s if report and self.phase == "training" else None
        else:
            share, right, left_s = None, format_clock(time.monotonic() - self.phase_start_s), None
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(
            total=1.0, completed=share or 0.0, pulse=share is None, complete_style="cyan", finished_style="green"
        )
        left = f"  {format_clock(left_s)} left" if left_s is not None else ""
        table.add_row(Text(self.phase, style="bold"), bar, f"{right}{left}")
        return table

    def _plot(self, width: int, rows: int) -> Iterator[Text]:
        """The loss over the whole run, with the largest and smallest value next to it."""
        margin = 7
        columns = max(8, width - margin)
        values = column_values(self.history.points(), 2 * columns)
        if not values:
            yield from (Text() for _ in range(rows))
            return
        low, high = min(values), max(values)
        for index, line in enumerate(braille_lines(values, columns, rows, low, high)):
            label = high if index == 0 else low if index == rows - 1 else None
            text = Text(f"{label:6.3f} " if label is not None else " " * margin, style=LABEL, no_wrap=True)
            yield text.append(line, style="cyan")

    def _facts(self) -> Table:
        """Two columns of labelled figures."""
        report, validation = self.report, self.validation
        none = "-"
        loss = f"{report.bpb:.4f} bpb, {report.nats_per_symbol:.4f} nats/symbol" if report else none
        rate = f"x{report.lr_factor:.3f}" if report else none
        speed = f"{format_bytes(report.bytes_per_s)}/s, {format_duration(report.step_s)}/step" if report else none
        seen = format_count(report.symbols) if report else none
        memory = format_bytes(report.peak_memory_bytes) if report else none
        score = score_text(validation) if validation else none
        scored = f"{validation.weights} weights after step {validation.step}" if validation else none
        saved = f"step {self.checkpoint_step}" if self.checkpoint_step is not None else none
        table = Table.grid(padding=(0, 1), expand=True)
        for style, ratio in ((LABEL, None), ("", 3), (LABEL, None), ("", 1)):
            table.add_column(ratio=ratio, no_wrap=True, overflow="ellipsis", style=style)
        table.add_row("loss", loss, "learning rate", rate)
        table.add_row("speed", speed, "symbols seen", seen)
        table.add_row("validation", Text(score, style="green" if validation else ""), "peak memory", memory)
        table.add_row("validated", scored, "checkpoint", saved)
        table.add_row("train time", format_clock(report.elapsed_s) if report else none)
        return table
