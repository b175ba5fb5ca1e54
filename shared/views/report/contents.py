"""One run as a report has it."""

from __future__ import annotations

from dataclasses import dataclass

from shared.runs.metrics import last_ending
from shared.runs.run_files import RunFiles
from shared.scoring.document import ScoreDocument
from shared.views.report.profile import ModelView


@dataclass(frozen=True)
class ReportedRun:
    """`name` is unique on the page; `score` is None for a run without one; `model` is what was measured of its weights,
    or None, and then `no_model` may say why."""

    name: str
    files: RunFiles
    score: ScoreDocument | None
    model: ModelView | None = None
    no_model: str = ""

    @property
    def state(self) -> str:
        """`finished`, or the last that its metrics say."""
        if last_ending(self.files.metrics) is not None:
            return "finished"
        last = next((event["event"] for event in reversed(self.files.metrics) if event["event"] != "phases"), "started")
        return last if last in ("interrupted", "failed") else "not finished"
