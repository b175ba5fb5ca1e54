"""Do all implementations compute the same thing? Checks, one table, and a report."""

from shared.parity.result import ParityReport, Row
from shared.parity.run import DEFAULT_STEPS, run_parity
from shared.parity.table import print_report

__all__ = ["DEFAULT_STEPS", "ParityReport", "Row", "print_report", "run_parity"]
