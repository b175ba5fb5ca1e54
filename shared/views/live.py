"""The live view for terminals: a dashboard of the run, redrawn in place."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult
from rich.control import Control
from rich.live import Live

from shared.runs.observer import RunStart, StepReport, ValidationReport
from shared.views.dashboard import Dashboard
from shared.views.plain import STOP_NOTICE, start_lines
from shared.views.plot import QUIET, History
from shared.views.stage_clock import notify

REFRESH_PER_S = 4
SHOW_CURSOR = "\x1b[?25h"


class SteadyLive(Live):
    """A live view that begins on an empty screen once the window has another size: what stands there was wrapped by the
    terminal, so nobody knows how many lines it takes."""

    _size: tuple[int, int] | None = None

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        size = self.console.size
        if self._size not in (None, size) and self.console.is_terminal and self.is_started:
            self._live_render._shape = None
            renderables = [Control.clear(), Control.home(), *renderables]
        self._size = size
        return super().process_renderables(renderables)


class LiveObserver:
    """Redraws a dashboard in place. State is set by the loop and read by the drawing thread, one field at a time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.dashboard: Dashboard | None = None
        self._live = SteadyLive(self, console=console, refresh_per_second=REFRESH_PER_S)

    def __enter__(self) -> LiveObserver:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.dashboard is not None:
            yield self.dashboard

    def on_start(self, start: RunStart) -> None:
        for line in start_lines(start):
            self.console.print(line, markup=False, highlight=False, style=QUIET)
        self.dashboard = Dashboard(
            start.spec,
            start.engine,
            start.device,
            start.run_path,
            step=start.step,
            progress_frac=start.progress_frac,
            validation=start.validation,
            # A run is resumed from a checkpoint.
            checkpoint_step=start.step or None,
            history=History(start.history),
        )
        self._live.start()

    def on_step(self, report: StepReport) -> None:
        shown = self._shown
        shown.phase, shown.phase_done, shown.report, shown.elapsed_s = "training", None, report, report.elapsed_s
        shown.history.add(report.progress_frac, report.bpb)

    def on_phase(self, phase: str) -> None:
        if self.dashboard is not None:
            shown = self.dashboard
            shown.phase, shown.phase_done, shown.phase_start_s = phase, None, time.monotonic()

    def on_progress(self, done: int, total: int) -> None:
        self._shown.phase_done = (done, total)

    def on_validation(self, report: ValidationReport) -> None:
        shown = self._shown
        shown.phase, shown.phase_done, shown.validation = "training", None, report
        where = shown.report.progress_frac if shown.report else shown.progress_frac
        shown.validations = [*shown.validations, (where, report.bpb)]

    def on_checkpoint(self, step: int, path: Path) -> None:
        self._shown.checkpoint_step = step

    def on_warning(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", markup=False, highlight=False)

    def on_end(self, status: str) -> None:
        if self.dashboard is not None:
            self.dashboard.phase, self.dashboard.phase_done, self.dashboard.notice = status, None, ""

    def on_stop_requested(self) -> None:
        if self.dashboard is not None:
            self.dashboard.notice = STOP_NOTICE
        # The next signal ends the process without cleaning up: give the cursor back now.
        notify(self.console, SHOW_CURSOR)

    @property
    def _shown(self) -> Dashboard:
        assert self.dashboard is not None, "a run starts before anything happens in it"
        return self.dashboard
