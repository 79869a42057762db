"""The numbers behind a promotion: intervals, and evidence that may be looked at any time."""

from trueup.stats.evidence import betting_evalue
from trueup.stats.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    smallest_useful_n,
    wilson,
)

__all__ = [
    "Interval",
    "betting_evalue",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "smallest_useful_n",
    "wilson",
]
