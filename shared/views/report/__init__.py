"""report.html: everything about a finished run on one page."""

from shared.views.report.document import write_report

__all__ = ["write_report"]
