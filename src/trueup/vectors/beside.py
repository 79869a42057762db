"""Embedding in a process beside a server, whose event loop shares no interpreter with it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trueup.vectors.config import VectorsConfig

__all__ = ["embedding_beside", "wait"]


@contextmanager
def embedding_beside(
    config: VectorsConfig, folder: Path, overrides: Sequence[str]
) -> Iterator[None]:
    """Run `trueup embed --watch` for the block, where `vectors.while_serving` asks for it.

    Args:
        folder: of the project; `overrides` are its settings from the command line.
    """
    if not config.while_serving:
        yield
        return
    given = [word for one in overrides for word in ("--set", one)]
    command = [sys.executable, "-m", "trueup", "--project", str(folder), *given]
    child = subprocess.Popen(
        [*command, "embed", "--watch", "--parent", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        child.terminate()
        child.wait()


def wait(config: VectorsConfig) -> None:
    """Until it is time to look for new interactions again."""
    time.sleep(config.poll_s)
