"""Losses of preferences, of single answers and of reward models: pure functions of log-probs.

None is reduced: each gives one value a pair (or an answer), and the caller divides by the number
of a whole optimizer step. One file a family; `PreferenceLoss` is what those on pairs return.
"""

from trueup.train.losses.anchored import dpop_loss, nll_loss, rpo_loss
from trueup.train.losses.dpo import PreferenceLoss, dpo_loss
from trueup.train.losses.hinge import hinge_loss
from trueup.train.losses.ipo import ipo_loss, ipo_norm_loss
from trueup.train.losses.kl import Estimator, kl_estimate
from trueup.train.losses.kto import KTOLoss, kto_loss, kto_reference_point
from trueup.train.losses.length import ld_dpo_loss, ln_dpo_loss, rdpo_loss
from trueup.train.losses.noisy import robust_dpo_loss, soft_dpo_loss
from trueup.train.losses.policy_gradient import (
    PolicyLoss,
    ValueLoss,
    clipped_policy_loss,
    clipped_value_loss,
)
from trueup.train.losses.reference_free import orpo_loss, simpo_loss
from trueup.train.losses.reward import bradley_terry_loss
from trueup.train.losses.wpo import wpo_weights

__all__ = [
    "Estimator",
    "KTOLoss",
    "PolicyLoss",
    "PreferenceLoss",
    "ValueLoss",
    "bradley_terry_loss",
    "clipped_policy_loss",
    "clipped_value_loss",
    "dpo_loss",
    "dpop_loss",
    "hinge_loss",
    "ipo_loss",
    "ipo_norm_loss",
    "kl_estimate",
    "kto_loss",
    "kto_reference_point",
    "ld_dpo_loss",
    "ln_dpo_loss",
    "nll_loss",
    "orpo_loss",
    "rdpo_loss",
    "robust_dpo_loss",
    "rpo_loss",
    "simpo_loss",
    "soft_dpo_loss",
    "wpo_weights",
]
