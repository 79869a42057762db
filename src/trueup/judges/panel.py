"""Several judges as one: most of them decide, or the mean of what they say.

    label.judge = "panel:llm:model-a,llm:model-b,house-style"         most of them; else a tie
    label.judge = "panel-mean:llm:model-a,llm:model-b"                the mean of their points

The id of a panel names every member, so that the rule of two scorers sees through it: what one
member labelled, a panel with that member must not promote, and the other way round.
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

from trueup.errors import ConfigError
from trueup.judges.base import Judge, Ranking, Side, version_of
from trueup.judges.questions import Question
from trueup.records import AnnotatorKind, Completion, Messages

__all__ = ["Panel", "members_of"]

Rule = Literal["majority", "mean"]
_PREFIX = "panel:"


class Panel:
    """Judges who decide together. Each is asked as it would be alone, with retries of its own; one
    that fails fails the panel."""

    is_symmetric = True

    def __init__(self, members: Sequence[Judge], *, rule: Rule = "majority") -> None:
        """Raises:
        ConfigError: fewer than two members, or one of them twice.
        """
        ids = [one.id for one in members]
        if len(ids) < 2 or len(set(ids)) < len(ids):
            raise ConfigError(
                "A panel needs at least two different judges",
                got=", ".join(ids),
                expected="two or more, each once",
                next="mend its list of members",
            )
        self.members, self.rule = list(members), rule
        self.id = f"{_PREFIX}{rule}:{json.dumps(sorted(ids), ensure_ascii=False)}"
        self.kind: AnnotatorKind = "llm" if any(m.kind == "llm" for m in members) else "code"
        self.version = " ".join(filter(None, map(version_of, self.members)))
        self.needs_audit = any(
            m.kind == "llm" and getattr(m, "needs_audit", True) for m in self.members
        )
        self._votes = Counter[tuple[int, ...]]()

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Each candidate's share of points against all others, in [0, 1].

        `majority`: a pair goes to the answer that more than half of the members prefer, else it is
        a tie. `mean`: the members' own points are averaged; their scores are turned into points
        first, since they have units of their own.

        Raises:
            UpstreamError, UnreadableVerdict: as the member that fails.
        """
        if len(candidates) == 1:
            return Ranking((0.5,), ((),))
        leads = [_leads(one, prompt, candidates) for one in self.members]
        points = [0.0] * len(candidates)
        for i, j in combinations(range(len(candidates)), 2):
            votes = tuple(lead[i, j] for lead in leads)
            self._votes[votes] += 1
            lead = _most(votes) if self.rule == "majority" else fmean(votes)
            points[i] += (1 + lead) / 2
            points[j] += (1 - lead) / 2
        games = len(candidates) - 1
        return Ranking(tuple(p / games for p in points), tuple(() for _ in candidates))

    def verdicts(self, questions: Sequence[Question]) -> list[Side | None]:
        """The panel's verdict on each question in the order it stands, for audits; None where too
        few members could be read. With `mean` it goes by the sign."""
        said = [_single(one, questions) for one in self.members]
        found: list[Side | None] = []
        for votes in zip(*said, strict=True):
            known = [{1: 1, 2: -1, 0: 0}[v] for v in votes if v is not None]
            if len(known) * 2 <= len(votes):
                found.append(None)
                continue
            self._votes[tuple(known)] += len(known) == len(votes)
            lead = _most(known) if self.rule == "majority" else _sign(sum(known))
            found.append({1: 1, -1: 2, 0: 0}[lead])
        return found

    def agreement(self) -> dict[str, Any]:
        """How far the members agreed on all pairs so far: the share on which all did, and
        Krippendorff's alpha, None where nothing was asked."""
        from trueup.stats import krippendorff_alpha

        items = [votes for votes, times in self._votes.items() for _ in range(times)]
        if not items:
            return {"num_pairs": 0, "unanimous_rate": None, "alpha": None}
        alpha = krippendorff_alpha(list(zip(*items, strict=True)), num_resamples=200)
        same = sum(len(set(votes)) == 1 for votes in items)
        return {
            "num_pairs": len(items),
            "unanimous_rate": same / len(items),
            "alpha": alpha and alpha._asdict(),
        }


def members_of(judge_id: str) -> list[str]:
    """A judge's own id and, where it is a panel, those of all its members, panels in it included.

    An id that only begins like a panel's stands for itself.
    """
    found = [judge_id]
    if judge_id.startswith(_PREFIX):
        try:
            inner = json.loads(judge_id.split(":", 2)[2])
        except (IndexError, ValueError):
            return found
        for one in inner if isinstance(inner, list) else []:
            found += members_of(str(one))
    return list(dict.fromkeys(found))


def _leads(
    judge: Judge, prompt: Messages, candidates: Sequence[Completion]
) -> dict[tuple[int, int], int]:
    """+1 where the first of two candidates leads, by place. A judge that may look at the order is
    asked in both, and what depends on it is a tie."""
    orders = [judge.rank(prompt, candidates).scores]
    if not getattr(judge, "is_symmetric", False):
        orders.append(judge.rank(prompt, candidates[::-1]).scores[::-1])
    found = {}
    for i, j in combinations(range(len(candidates)), 2):
        leads = {_sign(scores[i] - scores[j]) for scores in orders}
        found[i, j] = leads.pop() if len(leads) == 1 else 0
    return found


def _single(judge: Judge, questions: Sequence[Question]) -> list[Side | None]:
    """A member's verdicts in the order asked."""
    verdicts = getattr(judge, "verdicts", None)
    if verdicts is not None:
        return list(verdicts(questions))
    said: list[Side | None] = []
    for one in questions:
        answers = [Completion(text=one.first), Completion(text=one.second)]
        first, second = judge.rank(one.prompt, answers).scores
        said.append(1 if first > second else 2 if second > first else 0)
    return said


def _most(votes: Sequence[int]) -> int:
    """+1 or -1 where more than half say so, else 0."""
    for side in (1, -1):
        if sum(vote == side for vote in votes) * 2 > len(votes):
            return side
    return 0


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
