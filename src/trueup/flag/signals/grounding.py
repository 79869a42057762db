"""Signs that an answer leaves the context it was given: by words, by meaning, by entailment.

Only prompts that bring a context are looked at (`Context:` and `Question:`). An answer that admits
that the context does not say is grounded, whatever its words.
"""

from trueup.flag.signals.base import Context
from trueup.judges import text
from trueup.records import Interaction

__all__ = ["Distant", "NotEntailed", "Ungrounded", "claims", "context_of"]


class Ungrounded:
    """Content words that stand neither in the prompt nor in its context."""

    name, version = "ungrounded", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0.5 where their share is `flag.max_ungrounded`."""
        given = context_of(interaction)
        if not given:
            return None
        said = text.content_words(interaction.completion.text)
        known = {w for m in interaction.prompt for w in text.content_words(m.content)}
        known |= set(text.content_words(given))
        share = sum(w not in known for w in said) / len(said) if said else 0.0
        return min(1.0, 0.5 * share / context.config.max_ungrounded)


class Distant:
    """A sentence that means something no sentence of the context means: the largest cosine of each
    sentence of the answer to those of the context, and of them the smallest."""

    name, version = "distant", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0.5 where that cosine is `flag.min_similarity`; left out where the setting is 0 or the
        embedder is `lexical`, which knows words only, as `ungrounded` does."""
        line, embedder = context.config.min_similarity, context.embedder
        if not line or embedder is None or embedder.id.startswith("lexical"):
            return None
        given, said = context_of(interaction), claims(interaction)
        if not given:
            return None
        known = text.sentences(given)
        if not said or not known:
            return 0.0 if known else None
        cosines = embedder(said) @ embedder(known).T
        lowest = float(cosines.max(axis=1).min())
        return min(1.0, max(0.0, 0.5 * (1 - lowest) / (1 - line)))


class NotEntailed:
    """Sentences that do not follow from the context, by a model of natural language inference:
    one less the mean over the answer's sentences of P(entailed), as SummaC does (Laban et al. 2022,
    arXiv:2111.09525), with the whole context as the premise."""

    name, version = "not_entailed", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """The share itself: half of it not entailed is worth a label."""
        if context.entailment is None:
            return None
        given, said = context_of(interaction), claims(interaction)
        if not given:
            return None
        if not said:
            return 0.0
        entailed = context.entailment([(given, one) for one in said])
        return 1.0 - float(entailed.mean())


def context_of(interaction: Interaction) -> str:
    """The context a prompt brings; empty where it brings none."""
    return text.grounding(interaction.prompt).context


def claims(interaction: Interaction) -> list[str]:
    """The sentences of an answer that say something: those with a content word that do not admit
    ignorance."""
    given = context_of(interaction)
    return [
        one
        for one in text.sentences(interaction.completion.text)
        if text.content_words(one) and not text.admits_ignorance(one, context=given)
    ]
