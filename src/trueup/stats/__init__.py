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
from trueup.stats.bradley_terry import Game, Strength, bradley_terry
from trueup.stats.clusters import cluster_difference, cluster_mean, cluster_share, stratum_weights
from trueup.stats.evidence import betting_evalue, confidence_sequence, evidence_path
from trueup.stats.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    ratio_interval,
    smallest_useful_n,
    wilson,
    wilson_at,
)
from trueup.stats.ledger import elond_level, evidence_needed, lord_level, replay
from trueup.stats.ppi import LabelPlan, PPIMean, plan_labels, ppi_mean
from trueup.stats.winrate import LengthControl, Vote, length_controlled

__all__ = [
    "Game",
    "Interval",
    "LabelPlan",
    "LengthControl",
    "Level",
    "PPIMean",
    "Ratings",
    "Reliability",
    "Strength",
    "Vote",
    "agreement_rate",
    "annotator_reliability",
    "betting_evalue",
    "bradley_terry",
    "cluster_difference",
    "cluster_mean",
    "cluster_share",
    "cohen_kappa",
    "confidence_sequence",
    "elond_level",
    "evidence_needed",
    "evidence_path",
    "fleiss_kappa",
    "krippendorff_alpha",
    "length_controlled",
    "lord_level",
    "majority",
    "mean_interval",
    "paired_difference",
    "plan_labels",
    "ppi_mean",
    "ratio_interval",
    "replay",
    "smallest_useful_n",
    "stratum_weights",
    "wilson",
    "wilson_at",
]
