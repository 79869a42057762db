"""Work that is answered once it is on disk, in threads of its own.

While the store is locked or away such work may take every thread that it can get; answers of the
local model, `/health` and the end of the server need some, too.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["durably"]

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = ThreadPoolExecutor(8, thread_name_prefix="trueup-durable")


async def durably(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `asyncio.to_thread`."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_THREADS, partial(work, *args, **kwargs))
