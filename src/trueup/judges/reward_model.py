"""A trained reward model as a judge: it reads each answer alone and scores it.

It has learned the labels it was trained on, and a policy trained on its scores learns its errors:
it may label, but what it labelled another scorer must promote.
"""

from collections.abc import Sequence
from pathlib import Path

from trueup.judges.base import Ranking
from trueup.models import chat
from trueup.models.backbone import Backbone
from trueup.models.reward import Combination, RewardEnsemble
from trueup.models.shared_prompt import Branches
from trueup.records import AnnotatorKind, Completion, Messages

__all__ = ["RewardJudge"]


class RewardJudge:
    """An ensemble's combined score of each answer, in standard deviations of held-out answers."""

    kind: AnnotatorKind = "llm"
    is_symmetric = True
    needs_audit = False
    """Its accuracy on held-out pairs came with its training."""

    def __init__(
        self,
        backbone: Backbone,
        ensemble: RewardEnsemble,
        *,
        how: Combination = "mean",
        lam: float = 1.0,
    ) -> None:
        self.backbone, self.ensemble, self.lam = backbone, ensemble, lam
        self.how: Combination = how
        rule = f"{how}-{lam:g}" if how == "uwo" else how
        self.id = f"reward:{ensemble.weights}:{rule}/1"

    @classmethod
    def attach(
        cls, backbone: Backbone, folder: Path, *, how: Combination = "mean", lam: float = 1.0
    ) -> "RewardJudge":
        """Load a reward checkpoint's folder.

        Raises:
            ModelError: as `RewardEnsemble.attach`.
        """
        return cls(backbone, RewardEnsemble.attach(backbone, "judge", folder), how=how, lam=lam)

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Score every candidate, all in one pass a member.

        Raises:
            ModelError: the template refuses the prompt, or an answer does not fit the context.
        """
        tokenizer = self.backbone.tokenizer
        answers = [chat.completion_ids(tokenizer, one) for one in candidates]
        row = Branches(chat.prompt_ids(tokenizer, prompt), answers)
        (scores,) = self.ensemble.scores([row], how=self.how, lam=self.lam)
        return Ranking(tuple(scores), tuple(() for _ in scores))

    def step_scores(
        self, prompt: Messages, candidates: Sequence[Completion]
    ) -> list[list[tuple[int, float]]]:
        """What each candidate is worth at the end of each of its lines.

        Returns:
            For each candidate the tokens that end a line, the last token always among them, each
            with the score of the answer up to there.
        """
        tokenizer = self.backbone.tokenizer
        answers = [chat.completion_ids(tokenizer, one) for one in candidates]
        ends = [_line_ends([tokenizer.decode([i]) for i in ids]) for ids in answers]
        row = Branches(chat.prompt_ids(tokenizer, prompt), answers)
        (scores,) = self.ensemble.step_scores([row], [ends], how=self.how, lam=self.lam)
        return [list(zip(*pair, strict=True)) for pair in zip(ends, scores, strict=True)]

    def detach(self) -> None:
        """Forget the members' adapters; nothing can be scored any more."""
        self.ensemble.detach()


def _line_ends(texts: Sequence[str]) -> list[int]:
    """Places of the tokens that hold a line's end, and of the last token."""
    last = len(texts) - 1
    return [at for at, text in enumerate(texts) if "\n" in text or at == last]
