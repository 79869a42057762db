"""Text while it is being drawn: from one completion's tokens to pieces that a listener may show."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trueup.records import Completion

__all__ = ["OnPiece", "Piece", "PieceStream"]


class Piece(NamedTuple):
    """Text just drawn, never half a character, and the tokens it came from.

    The last piece of a completion, and only that one, carries a finish reason. Joined, the texts
    of a completion's pieces are its text, and their tokens its tokens.
    """

    sample_idx: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None


OnPiece = Callable[[Piece], None]


class PieceStream:
    """Turns one completion's tokens into pieces of text.

    A token may end within a character, and what a token looks like depends on the one before it,
    so the tokens of the last piece are decoded again together with the new ones, and the text is
    held back while it ends in U+FFFD, the sign of an unfinished character.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], on_piece: OnPiece, sample_idx: int
    ) -> None:
        self._decode, self._on_piece, self._sample_idx = decode, on_piece, sample_idx
        self._left: list[int] = []  # tokens of the last piece, and the text they had
        self._left_text = ""
        self._new: list[int] = []
        self._new_logprobs: list[float] = []
        self._num_shown = 0

    def push(self, token_id: int, logprob: float) -> None:
        """Take the next token; tells the listener if a piece is complete."""
        self._new.append(token_id)
        self._new_logprobs.append(logprob)
        text = self._decode(self._left + self._new)
        if len(text) <= len(self._left_text) or text.endswith("\ufffd"):
            return
        text = text[len(self._left_text) :]
        self._left, self._left_text = self._new, self._decode(self._new)
        self._say(text, None)

    def finish(self, completion: Completion) -> None:
        """Say whatever of the completion was held back, and how it ended."""
        self._say(completion.text[self._num_shown :], completion.finish_reason)

    def _say(self, text: str, finish_reason: str | None) -> None:
        piece = Piece(
            self._sample_idx, text, tuple(self._new), tuple(self._new_logprobs), finish_reason
        )
        self._new, self._new_logprobs = [], []
        self._num_shown += len(text)
        self._on_piece(piece)
