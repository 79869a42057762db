"""What a method does where the settings leave it open."""

from typing import Literal

from trueup.train.online.config import Estimator, OnlineConfig

__all__ = ["importance_of", "kl_estimator", "kl_in"]


def kl_in(method: str, config: OnlineConfig) -> str:
    """Where the price of leaving the reference is paid: what the settings say, or what the method's
    paper does."""
    return config.kl_in or ("loss" if method in ("grpo", "dr_grpo") else "reward")


def kl_estimator(method: str, config: OnlineConfig) -> Estimator:
    """How a nat is estimated there."""
    return config.kl_estimator or ("k3" if kl_in(method, config) == "loss" else "k1")


def importance_of(method: str, config: OnlineConfig) -> Literal["none", "token", "sequence"]:
    """How a foreign engine is corrected for: what the settings say, or what the method allows."""
    if config.importance is None and config.engine.kind != "local":
        return "sequence" if method == "rloo" else "token"
    return config.importance or "none"
