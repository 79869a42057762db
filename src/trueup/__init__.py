"""trueup keeps a deployed language model aligned: traffic in, evidence and a better model out.

    from trueup import Project, turn
    print(turn(Project("my-assistant")).verdict)

Importing the package loads neither torch nor a web framework.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueup.loop import Turn, turn
    from trueup.project import Config, Project
    from trueup.store import Store

__version__ = "0.1.0"

__all__ = ["Config", "Project", "Store", "Turn", "turn"]

_HOMES = {
    "Config": "trueup.project",
    "Project": "trueup.project",
    "Store": "trueup.store",
    "Turn": "trueup.loop",
    "turn": "trueup.loop",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trueup' has no attribute {name!r}")
