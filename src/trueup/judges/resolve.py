"""From a judge's name in the settings to the judge.

Names: `house-style`, `facts`, `llm` or `llm:MODEL`, an `http://` address that scores answers,
`panel:NAME,NAME,…` of any of these, `toy-gold` or `toy-labeller(…)` in the toy language, or
`package.module:attribute` for a team's own: an object with `id`, `kind` and `rank`, or a plain
function `(prompt, text) -> float`.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueup.errors import ConfigError
from trueup.judges.base import Judge, Ranking
from trueup.judges.config import EndpointConfig
from trueup.records import AnnotatorKind, Completion, Messages
from trueup.suite import SuitePrompt

if TYPE_CHECKING:
    from trueup.judges.llm import Memory

__all__ = ["resolve"]


def resolve(
    name: str,
    *,
    endpoint: EndpointConfig | None = None,
    suite: Sequence[SuitePrompt] = (),
    memory: "Memory | None" = None,
) -> Judge:
    """The judge of this name.

    Args:
        memory: where a language model's verdicts are kept, usually the store; None keeps none.

    Raises:
        ConfigError: there is no such judge, or it cannot be imported.
    """
    if name == "house-style":
        from trueup.judges.house_style import HouseStyle

        return HouseStyle()
    if name == "facts":
        from trueup.judges.facts import Facts

        return Facts(suite)
    if name == "toy-gold" or name.startswith("toy-labeller"):
        from trueup.toy import labellers

        return labellers.GoldJudge() if name == "toy-gold" else labellers.labeller(name)
    if name.startswith(("panel:", "panel-mean:")):
        from trueup.judges.panel import Panel

        how, _, listed = name.partition(":")
        names = [one.strip() for one in listed.split(",")]
        found = [resolve(one, endpoint=endpoint, suite=suite, memory=memory) for one in names]
        return Panel(found, rule="mean" if how == "panel-mean" else "majority")
    if name == "llm" or name.startswith("llm:"):
        from trueup.judges.llm import LLMJudge

        asked = endpoint or EndpointConfig()
        model = name.partition(":")[2] or asked.model
        return LLMJudge(asked.model_copy(update={"model": model}), memory)
    if name.startswith(("http://", "https://")):
        from trueup.judges.http import HTTPJudge

        return HTTPJudge(name, endpoint or EndpointConfig())
    if ":" in name:
        return _imported(name)
    raise ConfigError(
        "There is no judge of this name",
        got=name,
        expected="'house-style', 'facts', 'llm', 'llm:MODEL', 'panel:NAME,NAME', "
        "'package.module:function' or an http address",
        next="mend it in trueup.toml",
    )


class _FunctionJudge:
    """A plain scoring function in a judge's clothes."""

    kind: AnnotatorKind = "code"
    is_symmetric = True

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.id, self._function = f"code:{_own_name(name, function)}", function
        self.version = _source_hash(function)
        """Of the file the function stands in: what it said before it was mended is not its word
        any more. No part of the id, or it would be another scorer by a comment."""

    def rank(self, prompt: Messages, candidates: Sequence[Completion]) -> Ranking:
        scores = tuple(float(self._function(prompt, c.text)) for c in candidates)
        return Ranking(scores, tuple(() for _ in scores))


def _imported(name: str) -> Judge:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, type):
            found = found()
    except Exception as error:  # a team's own module runs as it is imported
        raise ConfigError(
            "A judge could not be imported",
            got=f"{name} ({type(error).__name__}: {error})",
            expected="package.module:attribute; a class is called without arguments",
            next="check the name, that the package is installed, and that it can be imported",
        ) from error
    is_judge = all(hasattr(found, part) for part in ("id", "kind", "rank"))
    if is_judge:
        return found
    if hasattr(found, "rank") or not callable(found):
        raise ConfigError(
            "This is no judge",
            got=f"{name}, {type(found).__name__}",
            expected="an object with id, kind and rank, or a function (prompt, text) -> float",
            next="add what is missing, or name a function",
        )
    return _FunctionJudge(name, found)


def _own_name(name: str, function: Callable[..., Any]) -> str:
    """Where the function was made, so that another name of it is no other scorer."""
    module, inner = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    is_plain = module and inner and "<" not in inner
    return f"{module}:{inner}" if is_plain else name


def _source_hash(function: Callable[..., object]) -> str:
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):  # compiled, or typed into a session
        return "unknown"
    return hashlib.sha256(source).hexdigest()[:8]
