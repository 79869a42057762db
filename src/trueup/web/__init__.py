"""The pages: what a turn did, what a judge is worth, and what was measured, for the person who
decides."""

from trueup.web.audit_page import audit_data, write_audit
from trueup.web.drill_page import drill_data, write_drill
from trueup.web.flag_page import trial_data, write_trial
from trueup.web.gold_page import gold_data, write_gold
from trueup.web.report import report_data, write_report
from trueup.web.shift_page import shift_data, write_shift

__all__ = [
    "audit_data",
    "drill_data",
    "gold_data",
    "report_data",
    "shift_data",
    "trial_data",
    "write_audit",
    "write_drill",
    "write_gold",
    "write_report",
    "write_shift",
    "write_trial",
]
