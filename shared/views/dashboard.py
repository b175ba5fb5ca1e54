"""What a terminal shows of a run: progress, the loss as a curve with its validations, and the figures worth watching.

Drawn for the live view of a run and for `bytetwin watch`, which reads a run from its files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shared.runs.observer import StepReport, ValidationReport
from shared.spec import Spec
from shared.units import format_bytes, format_clock, format_count, format_duration
from shared.views.plain import progress_text, score_text
from shared.views.plot import QUIET, History, plot_lines
from shared.views.utilisation import utilisation_text

MOST_COLUMNS = 120
# Of the window: an echoed ^C must not wrap behind the frame, or the frame would be drawn one line too low.
FREE_COLUMNS = 3
# With fewer columns inside the frame the figures stand in one column.
TWO_COLUMNS_FROM = 84
END_PHASES = ("trained", "finished", "paused", "interrupted", "failed")
# Rows of the view that are not the plot, and the plot's own limits.
OTHER_ROWS, LEAST_PLOT_ROWS, MOST_PLOT_ROWS = 14, 3, 9
NONE = "-"


@dataclass
class Dashboard:
    """The state of a run as it is drawn; another thread may set one field at a time. `history` and `validations` hold
    (progress fraction, bits per byte). `phase` is training, what a run does beside it, or how it ended."""

    spec: Spec
    engine: str
    device: str
    run_path: Path
    step: int = 0
    progress_frac: float = 0.0
    elapsed_s: float = 0.0
    report: StepReport | None = None
    validation: ValidationReport | None = None
    score_bpb: float | None = None
    checkpoint_step: int | None = None
    history: History = field(default_factory=History)
    validations: list[tuple[float, float]] = field(default_factory=list)
    phase: str = "training"
    phase_done: tuple[int, int] | None = None
    phase_start_s: float = 0.0
    notice: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(min(options.max_width - FREE_COLUMNS, MOST_COLUMNS), 8)
        inside = width - 4
        facts = self._facts()
        columns = 2 if inside >= TWO_COLUMNS_FROM else 1
        other = OTHER_ROWS + (len(facts) // 2 if columns == 1 else 0)
        rows = min(MOST_PLOT_ROWS, max(LEAST_PLOT_ROWS, console.height - other))
        plot = plot_lines(self.history.points(), self.validations, inside, rows, self._end_label())
        parts: list[RenderableType] = [*self._bar(inside), *plot, _grid(facts, columns)]
        if self.notice:
            parts.append(Text(self.notice, style="bold yellow"))
        yield Panel(
            Group(*parts),
            title=Text.assemble((self.spec.name, "bold"), f" on {self.engine}"),
            width=width,
            box=box.ROUNDED,
            border_style="cyan",
            padding=(0, 1),
        )

    def _end_label(self) -> str:
        """The end of the plot's axis."""
        if self.spec.schedule.driver == "time":
            return format_clock(self.spec.training.steps_limit_s)
        return f"step {self.spec.training.steps:,}"

    def _bar(self, width: int) -> Iterator[RenderableType]:
        """The phase, how far it is, how long it will take: in one line, or in two where the words fill one."""
        report = self.report
        share: float | None
        if self.phase_done is not None:
            done, total = self.phase_done
            share = done / total
            spent_s = time.monotonic() - self.phase_start_s
            right = f"{format_count(done)}/{format_count(total)} symbols"
            left_s: float | None = spent_s / done * (total - done) if done else None
        elif self.phase in ("training", *END_PHASES):
            share = report.progress_frac if report else self.progress_frac
            right = progress_text(self.spec, report.step if report else self.step, self.elapsed_s)
            left_s = report.left_s if report and self.phase == "training" else None
        else:
            share, left_s = None, None
            right = format_clock(time.monotonic() - self.phase_start_s) if self.phase_start_s else ""
        bar = ProgressBar(
            total=1.0, completed=share or 0.0, pulse=share is None, complete_style="cyan", finished_style="green"
        )
        words = right + (f"  {format_clock(left_s)} left" if left_s is not None else "")
        if len(self.phase) + len(words) + 12 > width:
            yield Text.assemble((self.phase, "bold"), f"  {words}")
            yield bar
            return
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        table.add_column(no_wrap=True, justify="right")
        table.add_row(Text(self.phase, style="bold"), bar, words)
        yield table

    def _facts(self) -> list[tuple[str, str, str]]:
        """(label, figure, style), the most important first."""
        report, validation = self.report, self.validation
        scored = f"{validation.weights} weights, step {validation.step:,}" if validation else NONE
        saved = f"step {self.checkpoint_step:,}" if self.checkpoint_step is not None else NONE
        return [
            ("training", f"{report.bpb:.4f} bpb, {report.nats_per_symbol:.4f} nats/symbol" if report else NONE, ""),
            ("gradient norm", f"{report.grad_norm:.3g}" if report else NONE, ""),
            ("validation", score_text(validation) if validation else NONE, "green" if validation else ""),
            ("validated", scored, ""),
            ("speed", self._speed(), ""),
            ("learning rate", self._rate(), ""),
            ("seen", self._seen(), ""),
            ("memory", f"{format_bytes(report.peak_memory_bytes)} at most" if report else NONE, ""),
            ("time", f"{format_clock(self.elapsed_s)} of training", ""),
            ("checkpoint", saved, ""),
            ("run", str(self.run_path), ""),
            *([("score", f"{self.score_bpb:.4f} bpb of the packed weights", "bold green")] if self.score_bpb else []),
        ]

    def _rate(self) -> str:
        if self.report is None:
            return NONE
        factor = self.report.lr_factor
        return f"{factor * self.spec.optimizer.matrix_lr:.3g} (x{factor:.3f})"

    def _speed(self) -> str:
        report = self.report
        if report is None:
            return NONE
        symbols_per_s = report.bytes_per_s / self._bytes_per_symbol(report)
        share = utilisation_text(self.spec, self.device, symbols_per_s)
        return f"{format_bytes(report.bytes_per_s)}/s, {format_duration(report.step_s)}/step, {share}"

    def _seen(self) -> str:
        report = self.report
        if report is None:
            return NONE
        return (
            f"{format_count(report.symbols)} symbols, {format_bytes(report.symbols * self._bytes_per_symbol(report))}"
        )

    @staticmethod
    def _bytes_per_symbol(report: StepReport) -> float:
        """Of the training text: the two units of the loss tell."""
        return report.nats_per_symbol / math.log(2.0) / report.bpb if report.bpb > 0.0 else 1.0


def _grid(facts: list[tuple[str, str, str]], columns: int) -> Table:
    """Labelled figures, none of them cut: what does not fit continues in the next line."""
    table = Table.grid(padding=(0, 1), expand=True)
    for _ in range(columns):
        table.add_column(no_wrap=True, style=QUIET)
        table.add_column(ratio=1, overflow="fold")
    cells = [(Text(label), Text(figure, style=style)) for label, figure, style in facts]
    for first in range(0, len(cells), columns):
        table.add_row(*(cell for pair in cells[first : first + columns] for cell in pair))
    return table
