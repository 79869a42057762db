"""The numbers behind a promotion: intervals, agreement, and evidence valid at any time."""

from trueup.stats.agreement import (
    Level,
    Ratings,
    Reliability,
    agreement_rate,
    annotator_reliability,
    cohen_kappa,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
)
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
    "Level",
    "Ratings",
    "Reliability",
    "agreement_rate",
    "annotator_reliability",
    "betting_evalue",
    "cohen_kappa",
    "fleiss_kappa",
    "krippendorff_alpha",
    "majority",
    "mean_interval",
    "paired_difference",
    "ratio_interval",
    "smallest_useful_n",
    "wilson",
]
