"""Personal data leaves a record before the record is written.

    scrub = Scrubber(config, store)
    store.add(scrub(interaction))

Each find becomes a placeholder that says its kind, `<EMAIL_1>`, the same for the same value within
a record, so that texts still read and a person stays the same person. What is hidden is gone:
nothing keeps what stood there.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from trueup.privacy.config import PrivacyConfig
from trueup.privacy.patterns import GROUPS, Pattern
from trueup.privacy.pseudonyms import Pseudonyms
from trueup.records import (
    Completion,
    Feedback,
    Interaction,
    Label,
    Message,
    Messages,
    Record,
    ReviewTask,
)
from trueup.store import Store

__all__ = ["Scrub", "Scrubber", "scrub_text"]

R = TypeVar("R", bound=Record)
Scrub = Callable[[R], R]
Finder = Callable[[str, "Seen"], str]


class Seen(dict[tuple[str, str], str]):
    """The placeholders of one record, by the kind and value that each stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Counter[str] = Counter()


class Scrubber:
    """What makes a record fit to be written, by the settings.

    Interactions, feedback, labels and review tasks are scrubbed; other records hold no traffic of
    their own and come back as they are. A record in which nothing was found is the same object.
    """

    def __init__(self, config: PrivacyConfig, store: Store | None = None) -> None:
        """
        Args:
            store: keeps the keys of the pseudonyms; without it users' ids are left as they are.

        Raises:
            MissingDependency: `presidio` is asked for and not installed.
            ConfigError: its language model is not.
        """
        self._names = Pseudonyms(store) if config.pseudonyms and store else None
        self._finders: list[Finder] = [] if config.scrubber == "off" else [scrub_text]
        if config.scrubber == "presidio":
            from trueup.privacy.presidio import presidio_finder

            self._finders.append(presidio_finder(config.presidio_model))

    def __call__(self, record: R) -> R:
        """The record without personal data; another one, with another id, where there was some."""
        changes = _changes(record, self._hide) if self._finders else {}
        if self._names and isinstance(record, Interaction) and record.user:
            name = self._names.of(record.user, record.tenant)
            changes |= {"user": name} if name != record.user else {}
        return _changed(record, changes) if changes else record

    def leaves(self, text: str) -> bool:
        """True where nothing of a text would be hidden. False may mean nothing: only the cheap
        tests before the patterns are asked."""
        if not self._finders:
            return True
        return self._finders == [scrub_text] and not any(group.may_have(text) for group in GROUPS)

    def _hide(self, text: str, seen: Seen) -> str:
        for find in self._finders:
            text = find(text, seen)
        return text


def scrub_text(text: str, seen: Seen | None = None) -> str:
    """The text with a placeholder for each find of the patterns.

    Args:
        seen: what was found before in the same record; new finds are added.
    """
    seen = Seen() if seen is None else seen
    for may_have, patterns in GROUPS:
        if may_have(text):
            for one in patterns:
                text = one.form.sub(lambda match, p=one: _replaced(match, p, seen), text)
    return text


def _replaced(match: re.Match[str], pattern: Pattern, seen: Seen) -> str:
    name, whole = pattern.name, match.group()
    hidden = match.groupdict().get("hide", whole)
    # spaces let a number in groups run on into what is behind it
    options = _shorter(whole) if name in ("IBAN", "CARD") else [hidden]
    hidden = next((one for one in options if pattern.holds(one)), "")
    return whole.replace(hidden, placeholder(name, hidden, seen), 1) if hidden else whole


def _shorter(found: str) -> list[str]:
    """All beginnings of what may be a number in groups that end where a group ends."""
    ends = [at for at in range(13, len(found)) if found[at] == " "]
    return [found, *(found[:at] for at in reversed(ends))]


def placeholder(name: str, value: str, seen: Seen) -> str:
    """`<EMAIL_1>`: the kind, and which of its values in this record."""
    key = (name, "".join(c for c in value.lower() if c.isalnum() or c in "@._"))
    if key not in seen:
        seen.numbers[name] += 1
        seen[key] = f"<{name}_{seen.numbers[name]}>"
    return seen[key]


# --- records ----------------------------------------------------------------------------------


def _changes(record: Record, hide: Finder) -> dict[str, Any]:
    """The fields that are to be others."""
    seen = Seen()
    if isinstance(record, Feedback):
        said = {"edit": record.edit, "comment": record.comment}
        found = {name: hide(text, seen) for name, text in said.items() if text}
        return {name: text for name, text in found.items() if text != said[name]}
    if isinstance(record, Interaction):
        prompt = _messages(record.prompt, hide, seen)
        is_same = prompt is record.prompt
        completion = _completion(record.completion, hide, seen, keep_tokens=is_same)
        tools = _inside(record.tools, hide, seen) if record.tools else record.tools
        error = hide(record.error, seen) if record.error else ""
        made = {"prompt": prompt, "completion": completion, "tools": tools, "error": error}
    elif isinstance(record, Label | ReviewTask):
        prompt = _messages(record.prompt, hide, seen)
        is_same = prompt is record.prompt
        made: dict[str, Any] = {
            "prompt": prompt,
            "candidates": tuple(
                _completion(one, hide, seen, keep_tokens=is_same) for one in record.candidates
            ),
        }
        if isinstance(record, Label) and record.comment:
            made["comment"] = hide(record.comment, seen)
    else:
        return {}
    return {name: value for name, value in made.items() if value != getattr(record, name)}


def _messages(messages: Messages, hide: Finder, seen: Seen) -> Messages:
    """The same object where nothing was found."""
    made = tuple(_message(one, hide, seen) for one in messages)
    return messages if all(a is b for a, b in zip(made, messages, strict=True)) else made


def _message(message: Message, hide: Finder, seen: Seen) -> Message:
    content = hide(message.content, seen)
    calls = _calls(message.tool_calls, hide, seen) if message.tool_calls else ()
    if content == message.content and calls == message.tool_calls:
        return message
    return message.model_copy(update={"content": content, "tool_calls": calls})


def _completion(
    completion: Completion, hide: Finder, seen: Seen, *, keep_tokens: bool
) -> Completion:
    """Tokens and log-probs say what was written after what: they go where either changed."""
    text = hide(completion.text, seen)
    calls = _calls(completion.tool_calls, hide, seen) if completion.tool_calls else ()
    changes: dict[str, Any] = {}
    if text != completion.text or calls != completion.tool_calls:
        changes = {"text": text, "tool_calls": calls}
    if changes or not keep_tokens:
        changes |= {"token_ids": None, "logprobs": None, "after": None}
    return completion.model_copy(update=changes) if changes else completion


def _calls(calls: tuple[Any, ...], hide: Finder, seen: Seen) -> tuple[Any, ...]:
    return tuple(
        call.model_copy(update={"arguments": hide(call.arguments, seen)}) for call in calls
    )


def _inside(value: Any, hide: Finder, seen: Seen) -> Any:
    """Every text inside of JSON."""
    if isinstance(value, str):
        return hide(value, seen)
    if isinstance(value, dict):
        return {key: _inside(inner, hide, seen) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_inside(inner, hide, seen) for inner in value)
    return value


def _changed(record: R, changes: dict[str, Any]) -> R:
    """The record with other contents, and so another id."""
    made = record.model_copy(update=changes)
    object.__setattr__(made, "id", made.expected_id())
    return made
