"""The gate before money is spent: one table of go, risk, no-go and unknown."""

from shared.preflight.ask_rows import PreflightReport, preferred_engine, run_preflight
from shared.preflight.question import Question
from shared.preflight.row import ROWS, Row
from shared.preflight.table import print_rows, print_verdict

__all__ = [
    "ROWS",
    "PreflightReport",
    "Question",
    "Row",
    "preferred_engine",
    "print_rows",
    "print_verdict",
    "run_preflight",
]
