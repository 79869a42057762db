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
    score alike, or whose best and worst are the same tokens, say nothing and give no pair.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.rows: list[Row] = []
        self._refs: dict[str, list[Tensor]] = {}
        for group in groups:
            best = max(range(len(group.scores)), key=lambda i, g=group: g.scores[i])
            worst = min(range(len(group.scores)), key=lambda i, g=group: g.scores[i])
            ids = group.row.branches.completions
            if group.scores[best] == group.scores[worst] or ids[best] == ids[worst]:
                continue
            self.rows.append(
                group.row._replace(
                    branches=Branches(group.row.branches.prompt_ids, [ids[best], ids[worst]]),
                    completions=(group.completions[best], group.completions[worst]),
                    desirable=(True, False),
                    margin=group.scores[best] - group.scores[worst],
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
