"""Does the model say the same when it is asked again?

Semantic entropy (Kuhn et al. 2023, arXiv:2302.09664; Farquhar et al. 2024, Nature 630): further
answers to the prompt are put into clusters of one meaning, and the entropy over the clusters is
high where the model makes something up anew each time. This is the discrete estimate, which needs
no log-probs: shares of samples stand for the probabilities of meanings.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from trueup.flag.signals.base import Context
from trueup.judges import text
from trueup.records import Interaction

__all__ = ["Inconsistent", "clusters", "semantic_entropy"]

Same = Callable[[str, str], bool]

SAME_COSINE = 0.85
"""Two texts whose vectors are this close are taken to mean the same."""
SAME_WORDS = 0.6
"""The same of the share of content words that two texts have in common, where the embedder knows
words only."""


class Inconsistent:
    """The answers to the prompt mean different things."""

    name, version = "inconsistent", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """Semantic entropy of the samples over its largest value, log k."""
        k = len(context.samples)
        if k < 2:
            return None
        return semantic_entropy(clusters(context.samples, _same(context))) / math.log(k)


def clusters(texts: Sequence[str], same: Same) -> list[int]:
    """The cluster of each text, numbered from 0. A text joins the first cluster whose first member
    means the same, as in Kuhn et al., Algorithm 1."""
    firsts: list[str] = []
    found = []
    for one in texts:
        place = next((n for n, first in enumerate(firsts) if same(first, one)), len(firsts))
        if place == len(firsts):
            firsts.append(one)
        found.append(place)
    return found


def semantic_entropy(found: Sequence[int]) -> float:
    """Entropy over clusters, in nats: 0 where all texts mean the same, log k where no two do."""
    shares = [count / len(found) for count in Counter(found).values()]
    return max(0.0, -sum(p * math.log(p) for p in shares))


def _same(context: Context) -> Same:
    """Entailment both ways where there is a model for it, else closeness of the vectors, else of
    the words."""
    if context.entailment is not None:
        entailment = context.entailment
        return lambda a, b: a == b or bool((entailment([(a, b), (b, a)]) > 0.5).all())
    embedder = context.embedder
    if embedder is not None and not embedder.id.startswith("lexical"):
        return lambda a, b: a == b or float(embedder([a])[0] @ embedder([b])[0]) >= SAME_COSINE
    return lambda a, b: a == b or _overlap(a, b) >= SAME_WORDS


def _overlap(a: str, b: str) -> float:
    """Content words of both over content words of either."""
    first, second = set(text.content_words(a)), set(text.content_words(b))
    either = first | second
    return len(first & second) / len(either) if either else float(a.strip() == b.strip())
