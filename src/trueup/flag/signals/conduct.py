"""What happened around an answer: what users said, what broke it off, calls that cannot run."""

import json
from typing import Any

from trueup.flag.signals.base import Context
from trueup.records import Feedback, Interaction, ToolCall

__all__ = ["BadCall", "Broken", "Disliked", "is_dislike"]


class Disliked:
    """A thumb down or an edit calls for a label whatever the text looks like."""

    name, version = "feedback", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0 or 1."""
        return 1.0 if any(map(is_dislike, context.feedback)) else 0.0


def is_dislike(feedback: Feedback) -> bool:
    """True of a thumb down and of an edit."""
    return feedback.rating == -1 or bool(feedback.edit)


class Broken:
    """Something broke the answer off. What was said until then is no example of an answer, so that
    no other signal of its text is looked at."""

    name, version = "error", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """1 where a server failed; 0.3 where the client left, which says little of the answer."""
        if not interaction.error:
            return 0.0
        return 0.3 if interaction.error.startswith("client") else 1.0


class BadCall:
    """A call of a function that was not offered, or with arguments it does not take."""

    name, version = "bad_call", 1

    def score(self, interaction: Interaction, context: Context) -> float | None:
        """0 or 1; left out where no function was called."""
        calls = interaction.completion.tool_calls
        if not calls:
            return None
        offered = dict(map(_offer, interaction.tools))
        return 0.0 if all(_can_run(call, offered) for call in calls) else 1.0


def _offer(tool: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and JSON schema of the parameters, as the request described them."""
    inner = tool.get("function")
    told: dict[str, Any] = inner if isinstance(inner, dict) else tool
    parameters = told.get("parameters")
    return str(told.get("name", "")), parameters if isinstance(parameters, dict) else {}


def _can_run(call: ToolCall, offered: dict[str, dict[str, Any]]) -> bool:
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return False
    if not isinstance(given, dict):
        return False
    if not offered:
        return True  # an import may not say what was offered
    if call.name not in offered:
        return False
    needed = offered[call.name].get("required", ())
    return not isinstance(needed, list) or all(name in given for name in needed)
