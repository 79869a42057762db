"""Stage four: labels become preference pairs, pairs become a frozen data set."""

from trueup.pair.config import PairConfig
from trueup.pair.decontaminate import HeldOut
from trueup.pair.run import (
    Paired,
    freeze,
    freeze_prompts,
    new_pairs,
    run,
    traffic_prompts,
    unpaired,
)

__all__ = [
    "HeldOut",
    "PairConfig",
    "Paired",
    "freeze",
    "freeze_prompts",
    "new_pairs",
    "run",
    "traffic_prompts",
    "unpaired",
]
