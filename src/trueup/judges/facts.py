"""The scorer that promotes: are the required facts there, is nothing invented, is it complete?

It knows what the labelling judge does not: for each held-out prompt, the facts a right answer must
contain, written down before any model answered. A wrong answer scores 0 however well it is put,
so short, safe or canned text gains nothing.
"""

import re
from collections.abc import Iterable, Sequence

from trueup.errors import DataError
from trueup.judges import text
from trueup.judges.base import Ranking
from trueup.judges.house_style import is_pasted
from trueup.records import AnnotatorKind, Completion, Messages, content_hash
from trueup.suite import SuitePrompt

__all__ = ["Facts"]

MAX_WORDS = 60


class Facts:
    """Scores answers to the prompts of a suite against their required facts."""

    kind: AnnotatorKind = "code"
    is_symmetric = True

    def __init__(self, suite: Iterable[SuitePrompt]) -> None:
        suite = list(suite)
        for prompt in suite:
            if prompt.answerable and not prompt.facts:
                raise DataError(
                    "A held-out prompt has no facts to score by",
                    got=prompt.messages[-1].content[:80],
                    expected='"facts": [["4 hours", "four hours"]], or "answerable": false',
                    next="add them to the suite's line, or choose another ab.scorer",
                )
        self._by_prompt = {content_hash([m.model_dump() for m in p.messages]): p for p in suite}
        self.id = "code:facts/1"

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Score each answer on its own.

        Raises:
            DataError: the prompt is not one of the suite's.
        """
        known = self._by_prompt.get(content_hash([m.model_dump() for m in prompt]))
        if known is None:
            raise DataError(
                "The facts scorer has no facts for a prompt",
                got=prompt[-1].content[:80],
                expected="a prompt of the held-out suite",
                next="add it to the suite with its facts",
            )
        scored = [self.score(known, candidate) for candidate in candidates]
        return Ranking(tuple(s for s, _ in scored), tuple(r for _, r in scored))

    def score(self, prompt: SuitePrompt, answer: Completion) -> tuple[float, tuple[str, ...]]:
        """In [0, 1]: the share of facts present, times 0.6 to 1 for saying nothing else wrong.

        Where the context does not hold the answer, admitting that is the one required fact, and
        an admission where it does hold it scores 0.
        """
        parts = text.grounding(prompt.messages)
        if not text.words(answer.text):
            return 0.0, ("empty",)
        if is_pasted(parts.context, answer.text) or len(text.words(answer.text)) > MAX_WORDS:
            return 0.0, ("buries the answer in text",)
        admits = text.admits_ignorance(_without(answer.text, prompt.facts))
        if admits and prompt.answerable:
            return 0.0, ("says it does not know",)
        present = self._share_present(prompt, answer.text, admits)
        reasons = [] if present == 1 else ["a required fact is missing"]
        invented = sorted(_numbers(answer.text) - _numbers(f"{parts.context} {parts.question}"))
        if invented:
            reasons.append(f"invents {', '.join(invented)}")
        complete = answer.finish_reason != "length"
        if not complete:
            reasons.append("breaks off")
        return present * (0.6 + 0.2 * (not invented) + 0.2 * complete), tuple(reasons)

    @staticmethod
    def _share_present(prompt: SuitePrompt, answer: str, admits: bool) -> float:
        if not prompt.answerable:
            return float(admits)
        found = [any(_contains(answer, option) for option in options) for options in prompt.facts]
        return sum(found) / len(found)


def _contains(answer: str, fact: str) -> bool:
    """Whole words, any case; hyphens and spaces are alike."""
    return _pattern(fact).search(answer) is not None


def _pattern(fact: str) -> re.Pattern[str]:
    spaced = r"[\s\-]+".join(re.escape(part) for part in re.split(r"[\s\-]+", fact.strip()))
    return re.compile(rf"(?<!\w){spaced}(?!\w)", re.I)


def _without(answer: str, facts: Sequence[Sequence[str]]) -> str:
    """The answer less its required facts: "not included" may be one of them."""
    for fact in (one for options in facts for one in options):
        answer = _pattern(fact).sub(" ", answer)
    return answer


def _numbers(answer: str) -> set[str]:
    return {w.replace(",", "") for w in text.words(answer) if w[0].isdigit()}
