"""report.html: everything about a finished run on one page."""

from shared.training.report.document import write_report

__all__ = ["write_report"]
