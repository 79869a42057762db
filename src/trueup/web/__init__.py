"""The pages: what a turn did and what a judge is worth, for the person who decides."""

from trueup.web.audit_page import audit_data, write_audit
from trueup.web.report import report_data, write_report

__all__ = ["audit_data", "report_data", "write_audit", "write_report"]
