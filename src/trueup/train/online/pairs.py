"""Online DPO: the best and the worst of a prompt's fresh answers as a pair."""

from collections.abc import Sequence

from torch import Tensor

from trueup.models.shared_prompt import Branches
from trueup.train.data import Row
from trueup.train.online.rollouts import Group

__all__ = ["OwnPairs"]


class OwnPairs:
    """The pairs of one batch, and the reference for them: its log-probs came with the rollouts.

    Guo et al. 2024, arXiv:2402.04792, with N answers in place of two. Groups whose answers all
    earn alike, or whose best and worst are the same tokens, say nothing and give no pair.

    Watch: where the reward is always sure which of two answers is better, the loss is lowest at
    infinity; beta slows the way there and is no price. Labels that err sometimes set a distance.
    """

    def __init__(self, groups: Sequence[Group], rewards: Sequence[Sequence[float]]) -> None:
        """`rewards` of each group's answers, after penalties."""
        self.rows: list[Row] = []
        self._refs: dict[str, list[Tensor]] = {}
        for group, earned in zip(groups, rewards, strict=True):
            best = max(range(len(earned)), key=earned.__getitem__)
            worst = min(range(len(earned)), key=earned.__getitem__)
            ids = group.row.branches.completions
            if earned[best] == earned[worst] or ids[best] == ids[worst]:
                continue
            self.rows.append(
                group.row._replace(
                    branches=Branches(group.row.branches.prompt_ids, [ids[best], ids[worst]]),
                    completions=(group.completions[best], group.completions[worst]),
                    desirable=(True, False),
                    margin=earned[best] - earned[worst],
                )
            )
            self._refs[group.row.id] = [group.ref_logprobs[best], group.ref_logprobs[worst]]

    def of(self, row: Row) -> list[Tensor]:
        return self._refs[row.id]

    def compute(self, rows: Sequence[Row]) -> dict[str, list[Tensor]]:
        return {row.id: self.of(row) for row in rows}

    def follow(self, picked: Sequence[Row]) -> None:
        pass

    def moved(self) -> None:
        pass
