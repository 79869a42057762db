"""What judging costs: requests, tokens and, where prices are set, money.

`counted` hears of every request made while it is open, from any thread; a judge need not be handed
a counter. Tokens are those the server reports. A reply that reports none makes the sum a lower
bound, which is said, and the cost unknown.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Usage", "counted", "note"]

_lock = threading.Lock()
_open: "list[Usage]" = []


@dataclass
class Usage:
    """What was asked of language models that judge."""

    num_requests: int = 0
    num_cached: int = 0
    """Verdicts that were known, and cost nothing."""
    input_tokens: int = 0
    output_tokens: int = 0
    num_unmetered: int = 0
    """Replies that did not say how many tokens they took."""
    num_unpriced: int = 0
    """Replies of endpoints without prices in the settings."""
    priced_usd: float = 0.0

    @property
    def cost_usd(self) -> float | None:
        """None where a reply had no price or did not say what it took."""
        return None if self.num_unpriced or self.num_unmetered else self.priced_usd

    def as_json(self) -> dict[str, Any]:
        """The counts and the cost."""
        found = asdict(self)
        del found["num_unpriced"], found["priced_usd"]
        return found | {"cost_usd": self.cost_usd}

    def text(self) -> str:
        """One line for people."""
        parts = [
            f"{self.num_requests:,} judge requests",
            f"{self.input_tokens:,} + {self.output_tokens:,} tokens"
            + (" at least" if self.num_unmetered else ""),
        ]
        if self.num_cached:
            parts.append(f"{self.num_cached:,} verdicts already known")
        if self.num_requests and self.cost_usd is not None:
            parts.append(f"${self.cost_usd:.4f}")
        return ", ".join(parts)


@contextmanager
def counted() -> Iterator[Usage]:
    """Count what judges ask for inside the block."""
    usage = Usage()
    with _lock:
        _open.append(usage)
    try:
        yield usage
    finally:
        with _lock:
            # by identity: two counts may be equal
            _open[:] = [one for one in _open if one is not usage]


def note(
    *,
    requests: int = 0,
    cached: int = 0,
    tokens: tuple[int, int] | None = None,
    prices: tuple[float | None, float | None] = (None, None),
) -> None:
    """Tell all open counts.

    Args:
        tokens: input and output tokens of a reply; None where it did not say.
        prices: USD per million of each.
    """
    with _lock:
        for usage in _open:
            usage.num_requests += requests
            usage.num_cached += cached
            if requests and tokens is None:
                usage.num_unmetered += requests
            if tokens is not None:
                usage.input_tokens += tokens[0]
                usage.output_tokens += tokens[1]
                if None in prices:
                    usage.num_unpriced += requests
                else:
                    usage.priced_usd += _cost(tokens, prices)


def _cost(tokens: tuple[int, int], prices: tuple[float | None, float | None]) -> float:
    return sum(n * (price or 0.0) for n, price in zip(tokens, prices, strict=True)) / 1e6
