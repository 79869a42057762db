"""Who compares answers of the toy language: exactly, or as people do.

A labeller feels a utility for each answer,

    utility = sharpness * gold + length_bias * words

and prefers a to b with the chance that Bradley & Terry 1952 give it, sigmoid(utility a - utility
b). It is done by random utilities: to each answer a Gumbel draw is added, and the difference of
two such draws is logistic. So pairs follow Bradley-Terry, longer lists Plackett-Luce, and in both
the order in which answers are shown plays no part.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from trueup.errors import ConfigError
from trueup.judges.base import Ranking
from trueup.records import AnnotatorKind, Completion, Messages
from trueup.toy.language import gold, words

__all__ = ["GoldJudge", "Labeller", "labeller"]


class GoldJudge:
    """Scores answers by their gold: the scorer that knows the truth."""

    id = "code:toy-gold/1"
    kind: AnnotatorKind = "code"
    is_symmetric = True

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """The gold of every candidate, exactly."""
        return _ranking([gold(prompt, candidate.text) for candidate in candidates])


@dataclass(frozen=True)
class Labeller:
    """A noisy judge. The same question gets the same answer: the draws come from the seed, the
    prompt and the answers' texts, so a stage that asks again learns nothing new."""

    sharpness: float = 1.5
    """Logits per unit of gold: at 1.5 an answer that is better by 1 wins 82 % of the time."""
    length_bias: float = 0.0
    """Logits per word of length, wanted or not."""
    flips: float = 0.0
    """Share of the verdicts that is turned round, whatever their margin."""
    seed: int = 0

    @property
    def id(self) -> str:
        """Its name, with all that makes it another judge."""
        given = f"sharpness={self.sharpness:g},length_bias={self.length_bias:g}"
        return f"code:toy-labeller/1({given},flips={self.flips:g},seed={self.seed})"

    @property
    def kind(self) -> AnnotatorKind:
        return "code"

    @property
    def is_symmetric(self) -> bool:
        return True

    def prefers(self, prompt: Messages, a: str, b: str, key: str | int = "") -> bool:
        """Whether `a` is preferred to `b`. Another key is another look at the same two answers;
        equal texts are a tie, and False."""
        first, second = self._scores(prompt, (a, b), key)
        return first > second

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        """Noisy utilities of the candidates, in logits; all turned round where it flips."""
        return _ranking(self._scores(prompt, [candidate.text for candidate in candidates], ""))

    def _scores(self, prompt: Messages, texts: Sequence[str], key: str | int) -> list[float]:
        asked = repr((self.seed, key, [(m.role, m.content) for m in prompt]))
        is_flipped = random.Random(f"{asked} flips {sorted(texts)}").random() < self.flips
        sign = -1.0 if is_flipped else 1.0
        return [sign * (self._utility(prompt, text) + _gumbel(f"{asked} {text}")) for text in texts]

    def _utility(self, prompt: Messages, text: str) -> float:
        return self.sharpness * gold(prompt, text) + self.length_bias * len(words(text))


def labeller(name: str) -> Labeller:
    """The labeller of a name in the settings: `toy-labeller`, or with what makes it another one,
    `toy-labeller(length_bias=0.5,flips=0.1,seed=3)`.

    Raises:
        ConfigError: the name has another form, or a setting that there is not.
    """
    known: dict[str, Any] = {one.name: float for one in fields(Labeller)} | {"seed": int}
    form = re.fullmatch(r"toy-labeller(?:\((.*)\))?", name)
    try:
        if form is None:
            raise ValueError(name)
        pairs = [one.split("=") for one in (form[1] or "").split(",") if one]
        given = {key.strip(): known[key.strip()](value) for key, value in pairs}
    except (KeyError, ValueError) as error:
        raise ConfigError(
            "There is no toy labeller of this name",
            got=name,
            expected=f"toy-labeller(NAME=NUMBER,…) with names of {', '.join(known)}",
            next="mend it in trueup.toml",
        ) from error
    return Labeller(**given)


def _gumbel(key: str) -> float:
    """A standard Gumbel draw that depends on the key alone."""
    uniform = random.Random(key).random() or 0.5**53
    return -math.log(-math.log(uniform))


def _ranking(scores: Sequence[float]) -> Ranking:
    return Ranking(tuple(scores), tuple(() for _ in scores))
