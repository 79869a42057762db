"""The house style of a support assistant as rules code can check. It labels; it never promotes.

The style: one short sentence, from the context, without preamble, and an admission where the
context does not say. What the judge does not see is the right answer: it reads the prompt and the
answer alone, as in production.
"""

from collections.abc import Sequence

from trueup.judges import text
from trueup.judges.base import Ranking
from trueup.records import AnnotatorKind, Completion, Messages

__all__ = ["HouseStyle"]

MAX_WORDS = 30
PASTED_SHARE = 0.6
_PREAMBLES = (
    "sure",
    "certainly",
    "of course",
    "great question",
    "as an ai",
    "based on",
    "according to",
    "the answer",
    "answer:",
    "here is",
    "here's",
    "hello",
    "hi ",
    "thank you",
    "i'd be happy",
    "to answer",
)


class HouseStyle:
    """Scores an answer in [0, 1]; every point lost has a reason."""

    id = "code:house-style/1"
    kind: AnnotatorKind = "code"
    is_symmetric = True

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Score each answer on its own; the order of candidates plays no part."""
        parts = text.grounding(prompt)
        scored = [self.score(parts, candidate.text) for candidate in candidates]
        return Ranking(tuple(s for s, _ in scored), tuple(r for _, r in scored))

    def score(self, prompt: text.Grounding, answer: str) -> tuple[float, tuple[str, ...]]:
        """The score and the reasons for what is missing.

        An admission scores 1 where the context looks silent and 0.1 where it does not. So does a
        statement that adds nothing to the question; any other is grounded (0.4), speaks to the
        question (0.3), is one short sentence (0.2) and opens without preamble (0.1).
        """
        if not text.content_words(answer) and not text.words(answer):
            return 0.0, ("empty",)
        if is_pasted(prompt.context, answer):
            return 0.0, ("pastes the context",)
        silent = looks_silent(prompt)
        if text.admits_ignorance(answer, context=prompt.context):
            return (
                (1.0, ())
                if silent
                else (0.1, ("says it does not know, but the context seems to say",))
            )
        if not adds_something(prompt, answer):
            return 0.1, ("adds nothing to the question",)
        reasons = []
        grounded = grounded_share(prompt, answer)
        if grounded < 1:
            reasons.append(f"{1 - grounded:.0%} of its content words are not in the context")
        speaks = speaks_to(prompt, answer)
        if not speaks:
            reasons.append("does not speak to the question")
        short = len(text.words(answer)) <= MAX_WORDS and len(text.sentences(answer)) == 1
        if not short:
            reasons.append("longer than one short sentence")
        plain = not answer.strip().lower().startswith(_PREAMBLES)
        if not plain:
            reasons.append("opens with a preamble")
        score = 0.4 * grounded**2 + 0.3 * speaks + 0.2 * short + 0.1 * plain
        if silent:
            reasons.append("does not admit that the context is silent")
            score *= 0.4
        return score, tuple(reasons)


def grounded_share(prompt: text.Grounding, answer: str) -> float:
    """Share of the answer's content words found in the context or the question; 1 if it has none.

    A number that stands nowhere counts three times: an invented price is worse than an
    unexpected adjective.
    """
    known = set(text.content_words(prompt.context)) | set(text.content_words(prompt.question))
    known |= set(text.content_words(prompt.system))
    total = missing = 0
    for word in text.content_words(answer):
        weight = 3 if word[0].isdigit() else 1
        total += weight
        missing += weight * (word not in known)
    return 1 - missing / total if total else 1.0


def speaks_to(prompt: text.Grounding, answer: str) -> bool:
    """True where the answer shares a content word with the context's sentence nearest to the
    question. Words of the system message do not count: every answer may name the product."""
    common = set(text.content_words(prompt.system))
    question = set(text.content_words(prompt.question)) - common
    options = text.sentences(prompt.context) or [prompt.question]
    nearest = max(options, key=lambda s: len(question & set(text.content_words(s))))
    wanted = (set(text.content_words(nearest)) - common) | question
    if set(text.content_words(answer)) & wanted:
        return True
    return text.asks_yes_or_no(prompt.question)


def adds_something(prompt: text.Grounding, answer: str) -> bool:
    """True where the answer has a content word that neither the question nor the system message
    brought, or where a yes or no is what was asked for. Slogans and echoes add nothing."""
    brought = set(text.content_words(f"{prompt.question} {prompt.system}"))
    return text.asks_yes_or_no(prompt.question) or bool(set(text.content_words(answer)) - brought)


def looks_silent(prompt: text.Grounding) -> bool:
    """True where fewer than half of the question's content words occur in the context."""
    if not prompt.context:
        return False
    asked = set(text.content_words(prompt.question)) - set(text.content_words(prompt.system))
    return bool(asked) and len(asked & set(text.content_words(prompt.context))) / len(asked) < 0.5


def is_pasted(context: str, answer: str) -> bool:
    """True where the answer is, in order, most of the context."""
    given, said = text.words(context), text.words(answer)
    if len(given) < 20 or len(said) < PASTED_SHARE * len(given):
        return False
    runs = {tuple(given[i : i + 5]) for i in range(len(given) - 4)}
    repeated = {tuple(said[i : i + 5]) for i in range(len(said) - 4)} & runs
    return len(repeated) >= PASTED_SHARE * len(runs)
