"""One run as a report has it."""

from __future__ import annotations

from dataclasses import dataclass

from shared.artifact.inspection import Costs
from shared.runs.metrics import state_of
from shared.runs.run_files import RunFiles
from shared.scoring.document import ScoreDocument
from shared.views.report.profile import ModelView


@dataclass(frozen=True)
class ReportedRun:
    """`name` is unique on the page; `score` is None for a run without one; `model` is what was measured of its weights,
    or None, and then `no_model` may say why; `costs` of its tensors where they were asked for."""

    name: str
    files: RunFiles
    score: ScoreDocument | None
    model: ModelView | None = None
    no_model: str = ""
    costs: Costs | None = None

    @property
    def state(self) -> str:
        """How the run stands, by its metrics."""
        return state_of(self.files.metrics)
