"""What must not be trained on, because it is what we measure with."""

from collections.abc import Iterable

from trueup.judges import text
from trueup.records import Messages

__all__ = ["HeldOut"]

GRAM = 8  # words; the usual length for decontamination is 8 to 13


class HeldOut:
    """Prompts of the evaluation sides, recognised when they come back in traffic.

    A prompt is held out when its last user message equals a held-out one after normalising case
    and punctuation, or when every 8-word run of the held-out message occurs in it.
    """

    def __init__(self, prompts: Iterable[Messages]) -> None:
        self._exact: set[tuple[str, ...]] = set()
        self._runs: list[frozenset[tuple[str, ...]]] = []
        for prompt in prompts:
            asked = _last_user(prompt)
            self._exact.add(asked)
            if len(asked) >= GRAM:
                self._runs.append(_grams(asked))

    def contains(self, prompt: Messages) -> bool:
        """True where training on this prompt would train on what measures."""
        asked = _last_user(prompt)
        if asked in self._exact:
            return True
        here = _grams(asked)
        return bool(here) and any(run <= here for run in self._runs)


def _last_user(prompt: Messages) -> tuple[str, ...]:
    said = next((m.content for m in reversed(prompt) if m.role == "user"), "")
    return tuple(text.words(said))


def _grams(said: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(said[i : i + GRAM] for i in range(len(said) - GRAM + 1))
