"""A language model as a judge, over any OpenAI-compatible endpoint.

Pairwise, candidates meet in pairs. Every pair is asked in both orders and a verdict that changes
with the order is a tie: many judges favour whatever stands first, and small ones say "A" every
time. A candidate's score is its share of points, a win one and a tie a half. Pointwise, each
candidate is graded alone from 1 to 10, which costs N requests for N candidates and not N(N-1), and
tells close answers apart less often.

A verdict is never paid for twice: with a memory (the store), what was asked before is read.
"""

import itertools
from collections.abc import Sequence
from typing import Protocol

from trueup.judges.base import Ranking, Side
from trueup.judges.config import EndpointConfig
from trueup.judges.questions import (
    GRADE,
    MAX_GRADE,
    WINNER,
    Question,
    parse_verdict,
    read_question,
    write_grade_question,
    write_question,
)
from trueup.judges.usage import note
from trueup.judges.wire import Endpoint
from trueup.records import AnnotatorKind, Completion, Messages, content_hash

__all__ = ["LLMJudge", "Memory", "Question", "parse_verdict", "read_question", "write_question"]

BATCH = 32  # questions between two writings of what was said

_SIDES: dict[str | None, Side] = {"A": 1, "B": 2, "tie": 0}


class Memory(Protocol):
    """Where verdicts are kept: the store."""

    def remembered(self, keys: Sequence[str]) -> dict[str, str]:
        """What is known under these keys."""
        ...

    def remember(self, verdicts: dict[str, str]) -> None:
        """Keep these."""
        ...


class LLMJudge:
    """Ranks answers by asking a model about every pair in both orders, or for a grade of each."""

    kind: AnnotatorKind = "llm"
    is_symmetric = True

    def __init__(self, config: EndpointConfig, memory: Memory | None = None) -> None:
        self._config = config
        self._form = GRADE if config.form == "pointwise" else WINNER
        self._endpoint = Endpoint(config)
        self._memory = memory if config.cache else None
        self.id = f"llm:{config.model}/{content_hash([self._form.prompt, config.rubric])[:8]}"

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Pairwise the share of points of each candidate against all others, pointwise its grade,
        both in [0, 1].

        Equal texts tie without being asked about.

        Raises:
            UpstreamError: the endpoint is down or refuses.
            UnreadableVerdict: a verdict stays unreadable after the retries.
        """
        texts, nothing = [c.text for c in candidates], tuple(() for _ in candidates)
        if self._form is GRADE:
            grades = self._grades([(prompt, text) for text in texts])
            known = [grades[prompt, text] or 1 for text in texts]
            return Ranking(tuple((g - 1) / (MAX_GRADE - 1) for g in known), nothing)
        if len(candidates) == 1:
            return Ranking((0.5,), nothing)
        orders = list(itertools.permutations(dict.fromkeys(texts), 2))
        asked = [Question(prompt, *order) for order in orders]
        verdicts = dict(zip(orders, self._winners(asked), strict=True))
        points = [0.0] * len(texts)
        for i, j in itertools.combinations(range(len(texts)), 2):
            # equal texts were not asked about
            lead = _agreed(verdicts.get((texts[i], texts[j])), verdicts.get((texts[j], texts[i])))
            points[i] += (1 + lead) / 2
            points[j] += (1 - lead) / 2
        return Ranking(tuple(p / (len(texts) - 1) for p in points), nothing)

    def verdicts(self, questions: Sequence[Question]) -> list[Side | None]:
        """The verdict on each question as it stands, asked in this order alone; 1 the first
        answer, 2 the second, 0 a tie, None unreadable. For audits: `rank` asks in both orders.

        Raises:
            UpstreamError: as `rank`.
        """
        if self._form is WINNER:
            return self._winners(questions, skip_unreadable=True)
        asked = [(q.prompt, text) for q in questions for text in (q.first, q.second)]
        grades = self._grades(asked, skip_unreadable=True)
        return [_higher(grades[q.prompt, q.first], grades[q.prompt, q.second]) for q in questions]

    def _winners(
        self, questions: Sequence[Question], *, skip_unreadable: bool = False
    ) -> list[Side | None]:
        rubric = self._config.rubric
        asked = [write_question(q.prompt, q.first, q.second, rubric=rubric) for q in questions]
        said = self._ask(asked, skip_unreadable)
        return [_SIDES.get(said[one]) for one in asked]

    def _grades(
        self, answers: Sequence[tuple[Messages, str]], *, skip_unreadable: bool = False
    ) -> dict[tuple[Messages, str], int | None]:
        """From 1 to 10, each answer asked about once."""
        rubric = self._config.rubric
        asked = {one: write_grade_question(*one, rubric=rubric) for one in answers}
        said = self._ask(list(asked.values()), skip_unreadable)
        return {one: int(grade) if (grade := said[q]) else None for one, q in asked.items()}

    def _ask(self, questions: Sequence[str], skip_unreadable: bool) -> dict[str, str | None]:
        """The answer to each question: a known one, or the model's."""
        keys = {one: content_hash([self.id, one]) for one in dict.fromkeys(questions)}
        known = self._memory.remembered(list(keys.values())) if self._memory else {}
        fresh = [one for one, key in keys.items() if key not in known]
        note(cached=len(keys) - len(fresh))
        answered: dict[str, str | None] = {}
        for at in range(0, len(fresh), BATCH):
            part = fresh[at : at + BATCH]
            said = self._endpoint.ask(self._form, part, skip_unreadable=skip_unreadable)
            answered |= dict(zip(part, said, strict=True))
            if self._memory:  # what was paid for is kept, whatever comes of the rest
                found = zip(part, said, strict=True)
                self._memory.remember({keys[one]: what for one, what in found if what})
        return {one: answered[one] if one in answered else known[keys[one]] for one in keys}


def _agreed(forward: Side | None, backward: Side | None) -> int:
    """+1 or -1 where both orders name the same answer, else 0."""
    if (forward, backward) == (1, 2):
        return 1
    return -1 if (forward, backward) == (2, 1) else 0


def _higher(first: int | None, second: int | None) -> Side | None:
    if first is None or second is None:
        return None
    return 1 if first > second else 2 if second > first else 0
