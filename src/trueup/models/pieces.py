"""Text while it is being drawn: from one completion's tokens to pieces that a listener may show."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from trueup.models.stopping import Decode, GrowingText
from trueup.records import Completion

__all__ = ["OnPiece", "Piece", "PieceStream"]


class Piece(NamedTuple):
    """Text just drawn, never half a character, and the tokens that end within it.

    The last piece of a completion, and only that one, carries a finish reason. Joined, the texts
    of a completion's pieces are its text, and their tokens its tokens: those of a stop string, of
    which nothing is shown, come with the last piece.
    """

    sample_idx: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None


OnPiece = Callable[[Piece], None]


class _Token(NamedTuple):
    token_id: int
    logprob: float
    end: int
    """Characters of the text up to and with this token's."""


class PieceStream:
    """Turns one completion's tokens into pieces of text, and sees where a stop string ends it.

    Held back is what may be the beginning of a stop string, until it turns out not to be.
    """

    def __init__(
        self, decode: Decode, on_piece: OnPiece, sample_idx: int, stop: Sequence[str] = ()
    ) -> None:
        self._text = GrowingText(decode, stop)
        self._on_piece, self._sample_idx = on_piece, sample_idx
        self._new: list[tuple[int, float]] = []  # tokens of a character that is not finished
        self._held: deque[_Token] = deque()  # tokens whose text was not shown
        self._num_shown = 0

    def push(self, token_id: int, logprob: float) -> bool:
        """Take the next token; tells the listener if a piece is complete.

        Returns:
            True once the text contains a stop string.
        """
        self._new.append((token_id, logprob))
        if self._text.push(token_id):
            self._held += [_Token(*one, len(self._text.text)) for one in self._new]
            self._new = []
            num_safe = self._text.num_safe
            if num_safe > self._num_shown:
                tokens = []
                while self._held and self._held[0].end <= num_safe:
                    tokens.append(self._held.popleft()[:2])
                self._say(self._text.text[self._num_shown : num_safe], tokens, None)
        return self._text.is_stopped

    def finish(self, completion: Completion) -> None:
        """Say whatever of the completion was held back, and how it ended."""
        tokens = [one[:2] for one in self._held] + self._new
        self._say(completion.text[self._num_shown :], tokens, completion.finish_reason)

    def _say(
        self, text: str, tokens: Sequence[tuple[int, float]], finish_reason: str | None
    ) -> None:
        self._num_shown += len(text)
        token_ids, logprobs = tuple(t for t, _ in tokens), tuple(p for _, p in tokens)
        self._on_piece(Piece(self._sample_idx, text, token_ids, logprobs, finish_reason))
