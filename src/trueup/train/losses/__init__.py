"""Preference losses: pure functions of log-probs."""

from trueup.train.losses.dpo import PreferenceLoss, dpo_loss

__all__ = ["PreferenceLoss", "dpo_loss"]
