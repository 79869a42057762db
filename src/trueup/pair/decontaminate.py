"""What must not be trained on, because it is what we measure with."""

from collections.abc import Iterable

from trueup.judges import text
from trueup.records import Messages

__all__ = ["HeldOut"]

GRAM = 8  # words; the usual length for decontamination is 8 to 13
QUESTION = 5  # words; a shorter question does not identify what it is about


class HeldOut:
    """Prompts of the evaluation sides, recognised when they come back in traffic.

    A prompt is held out when its last user message, or the question in it, equals a held-out one
    after normalising case and punctuation, or when every 8-word run of the held-out one occurs in
    it. Looking at the question on its own finds it again under a reworded context.
    """

    def __init__(self, prompts: Iterable[Messages]) -> None:
        self._exact: set[tuple[str, ...]] = set()
        self._runs: list[frozenset[tuple[str, ...]]] = []
        for prompt in prompts:
            for asked in _asked(prompt):
                self._exact.add(asked)
                if len(asked) >= GRAM:
                    self._runs.append(_grams(asked))

    def contains(self, prompt: Messages) -> bool:
        """True where training on this prompt would train on what measures."""
        asked = _asked(prompt)
        if not self._exact.isdisjoint(asked):
            return True
        here = _grams(asked[0])
        return bool(here) and any(run <= here for run in self._runs)


def _asked(prompt: Messages) -> tuple[tuple[str, ...], ...]:
    """The words of the last user message, and those of its question where it brings a context
    along that is more than a few words of small talk."""
    whole = next((m.content for m in reversed(prompt) if m.role == "user"), "")
    parts = text.grounding(prompt)
    asked = tuple(text.words(whole))
    question = tuple(text.words(parts.question))
    # "Is it free?" is asked of many contexts; it identifies nothing on its own
    return (asked, question) if parts.context and len(question) >= QUESTION else (asked,)


def _grams(said: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(said[i : i + GRAM] for i in range(len(said) - GRAM + 1))
