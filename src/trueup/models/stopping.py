"""Stop strings: where a text ends before one, and how far it may be shown while it grows.

The sampler knows tokens only. Whoever has the tokenizer keeps a `GrowingText` for each completion,
feeds it what is drawn, and ends the completion with reason "stop" once it `is_stopped`.
"""

from collections.abc import Callable, Sequence
from typing import Literal

__all__ = ["Decode", "GrowingText", "before_stop", "stop_watch"]

Decode = Callable[[Sequence[int]], str]

UNFINISHED = "\ufffd"
"""What the beginning of a character decodes to."""


def before_stop(text: str, stop: Sequence[str]) -> str:
    """The text up to where the first stop string in it begins; all of it where there is none."""
    return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]


class GrowingText:
    """The text of one completion while its tokens come, and whether a stop string is in it.

    A token may end within a character, and what a token looks like depends on the one before it,
    so the tokens of the last step are decoded again together with the new ones, and the text waits
    while it ends in U+FFFD.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.text = ""
        """Whole characters so far."""
        self.num_before_stop: int | None = None
        """Characters before the first stop string, once there is one."""
        self._decode, self._stop = decode, tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._left: list[int] = []  # the tokens that came last, and the text they had
        self._left_text = ""
        self._new: list[int] = []

    def push(self, token_id: int) -> bool:
        """Take the next token; True where `text` grew by it."""
        self._new.append(token_id)
        text = self._decode(self._left + self._new)
        new = text[len(self._left_text) :]
        self._look(new.rstrip(UNFINISHED))
        if not new or new.endswith(UNFINISHED):
            return False
        self._look(new)
        self.text += new
        self._left, self._left_text = self._new, self._decode(self._new)
        self._new = []
        return True

    @property
    def is_stopped(self) -> bool:
        """True once the tokens' text contains a stop string."""
        return self.num_before_stop is not None

    @property
    def num_safe(self) -> int:
        """Characters of `text` that stay whatever comes: all before what is a stop string, or may
        be the beginning of one."""
        if self.num_before_stop is not None:
            return min(len(self.text), self.num_before_stop)
        tail = self.text[max(0, len(self.text) - self._longest) :]
        held = (
            size
            for one in self._stop
            for size in range(1, min(len(one) - 1, len(tail)) + 1)
            if tail.endswith(one[:size])
        )
        return len(self.text) - max(held, default=0)

    def _look(self, new: str) -> None:
        """See whether a stop string ends within the new text."""
        if not self._stop or self.is_stopped:
            return
        tail = self.text[max(0, len(self.text) - self._longest + 1) :]
        if any(one in tail + new for one in self._stop):
            self.num_before_stop = len(before_stop(self.text + new, self._stop))


def stop_watch(
    decode: Decode, stop: Sequence[str]
) -> Callable[[int, int, int, float], Literal["stop"] | None] | None:
    """What `sample` asks at each token whether the completion has reached one of these strings;
    None where there are none."""
    if not stop:
        return None
    texts: dict[tuple[int, int], GrowingText] = {}

    def on_token(key: int, sample_idx: int, token_id: int, _: float) -> Literal["stop"] | None:
        text = texts.setdefault((key, sample_idx), GrowingText(decode, stop))
        text.push(token_id)
        return "stop" if text.is_stopped else None

    return on_token
