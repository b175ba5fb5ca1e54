"""Do all implementations compute the same thing? Checks, one table, and a report."""

from shared.parity.compare_engines import DEFAULT_STEPS, run_parity
from shared.parity.result import ParityReport, ParityRow
from shared.parity.table import print_report

__all__ = ["DEFAULT_STEPS", "ParityReport", "ParityRow", "print_report", "run_parity"]
