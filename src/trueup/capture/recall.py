"""Answers that the rate left out, for the minutes in which somebody may still complain.

They are in memory alone: time, their number and their size bound them, and a restart forgets
them.
"""

import time
from collections import OrderedDict
from collections.abc import Sequence

from trueup.records import Interaction

__all__ = ["Recall", "size_of"]

Group = tuple[Interaction, ...]
OVERHEAD_BYTES = 512  # of an interaction beside its texts, roughly


class Recall:
    """A ring of requests. Not thread-safe: the recorder's lock guards it."""

    def __init__(self, keep_s: float, max_groups: int, max_bytes: float) -> None:
        self._keep_s, self._max_groups, self._max_bytes = keep_s, max_groups, max_bytes
        self._groups: OrderedDict[str, tuple[float, int, Group]] = OrderedDict()
        # any request id or record id -> by tenant, the latest last, the group's key
        self._keys_of: dict[str, dict[str | None, str]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._groups)

    def hold(self, group: Sequence[Interaction]) -> None:
        """Keep the interactions of a request for a while."""
        size = sum(map(size_of, group))
        if not self._keep_s or not self._max_groups or size > self._max_bytes:
            return
        key = group[0].id
        self._drop(key)
        self._groups[key] = (time.monotonic() + self._keep_s, size, tuple(group))
        self._bytes += size
        for name in _names(group):
            keys = self._keys_of.setdefault(name, {})
            keys.pop(group[0].tenant, None)
            keys[group[0].tenant] = key
        self._expire()

    def take(self, name: str, tenant: str | None = None) -> Group:
        """The interactions of the request with this request id, or that hold the record with this
        id; empty if there are none any more. They are held no longer.

        Args:
            tenant: whose it must be; by default the latest of anybody's.
        """
        self._expire()
        keys = self._keys_of.get(name, {})
        return self._drop(keys.get(tenant, "") if tenant else next(reversed(keys.values()), ""))

    def _expire(self) -> None:
        now = time.monotonic()
        while self._groups:
            key, (until, _, _) = next(iter(self._groups.items()))
            is_over = len(self._groups) > self._max_groups or self._bytes > self._max_bytes
            if until > now and not is_over:
                return
            self._drop(key)

    def _drop(self, key: str) -> Group:
        if key not in self._groups:
            return ()
        _, size, group = self._groups.pop(key)
        self._bytes -= size
        for name in _names(group):
            keys = self._keys_of.get(name, {})
            if keys.get(group[0].tenant) == key:
                del keys[group[0].tenant]
                if not keys:
                    del self._keys_of[name]
        return group


def size_of(one: Interaction) -> int:
    """Roughly what an interaction takes in memory: its characters, and a little."""
    texts = sum(len(turn.content) for turn in one.prompt) + len(one.completion.text)
    return OVERHEAD_BYTES + texts + 8 * len(one.completion.token_ids or ())


def _names(group: Sequence[Interaction]) -> list[str]:
    return [name for one in group for name in (one.request_id, one.id) if name]
