"""The pages: what a turn did, for the person who decides whether to trust it."""

from trueup.web.report import report_data, write_report

__all__ = ["report_data", "write_report"]
