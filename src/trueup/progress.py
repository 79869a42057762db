"""How long work tells that it is alive, without knowing who listens.

A stage opens a `task` and advances it. The terminal shows a bar; a library caller sees nothing
unless it sets a listener of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

__all__ = ["Advance", "listen", "task"]

Advance = Callable[[int], None]
Listener = Callable[[str, int], AbstractContextManager[Advance]]

_listener: ContextVar[Listener | None] = ContextVar("trueup_progress", default=None)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send every task inside the block to `listener(name, total)`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def task(name: str, total: int) -> AbstractContextManager[Advance]:
    """Announce work of `total` steps; call what it yields with the number of steps just done."""
    listener = _listener.get()
    return listener(name, total) if listener else nullcontext(lambda _: None)
