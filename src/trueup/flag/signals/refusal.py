"""Did the model decline?"""

from trueup.flag.signals.base import Context
from trueup.judges.refusals import is_refusal
from trueup.records import Interaction

__all__ = ["Refusal"]


class Refusal:
    """The answer begins by declining. Whether it should have is for a person to say."""

    name, version = "refusal", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0 or 0.6."""
        return 0.6 if is_refusal(interaction.completion.text) else 0.0
