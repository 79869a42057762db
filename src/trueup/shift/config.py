"""When a data set is too far from the model that is to learn from it."""

from pydantic import Field

from trueup.config import StageConfig

__all__ = ["ShiftConfig"]


class ShiftConfig(StageConfig):
    """How the distance of pairs from the champion is measured, and from where it warns."""

    before_training: bool = True
    """Measure each data set of pairs before it is trained on, and warn. Draws answers where the
    champion did not draw the pairs itself."""

    num_pairs: int = Field(default=64, ge=20)
    """Pairs that are looked at, spread over the data set; below 20 nothing is said."""

    max_tokens: int = Field(default=256, ge=1)
    """Longest answer the champion draws for comparison, where the pairs do not say how theirs were
    drawn."""

    max_auc: float = Field(default=0.8, gt=0.5, lt=1)
    """Warn above: how well a classifier tells the pairs' answers from the champion's own. On a toy
    language own samples stand at 0.5, a higher temperature at 0.6, another writer at 0.99, and the
    last cost a tenth to a quarter of the gain at equal KL."""

    min_ess: float = Field(default=0.1, gt=0, lt=1)
    """Warn below: effective share of the answers under importance weights, which are 1 for the
    champion's own."""

    min_overlap: float = Field(default=0.1, gt=0, lt=1)
    """Warn below: chance mass that the champion and whoever wrote the answers have in common, which
    is 1 less their total variation distance."""

    permutations: int = Field(default=200, ge=20)
    """Of the MMD test; its smallest p-value is 1 / (permutations + 1)."""

    window_days: int = Field(default=7, ge=1)
    """Prompts of the newest days are held against those of as many days before."""

    seed: int = 11
    """Of the answers drawn, of the pairs picked and of the permutations."""
