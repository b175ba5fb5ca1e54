"""The gate before money is spent: one table of go, no-go and unknown."""

from shared.preflight.question import Question, ScalingFit, read_fit
from shared.preflight.report import print_report
from shared.preflight.row import ROWS, Row
from shared.preflight.run import PreflightReport, preferred_engine, run_preflight

__all__ = [
    "ROWS",
    "PreflightReport",
    "Question",
    "Row",
    "ScalingFit",
    "preferred_engine",
    "print_report",
    "read_fit",
    "run_preflight",
]
