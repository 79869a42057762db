"""Personal data leaves a record before the record is written.

    scrub = Scrubber(config, store)
    store.add(scrub(interaction))

Each find becomes a placeholder that says its kind, `<EMAIL_1>`, the same for the same value within
a record, so that texts still read and a person stays the same person. What is hidden is gone:
nothing keeps what stood there.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from trueup.privacy.config import PrivacyConfig
from trueup.privacy.patterns import GROUPS, Group, Pattern
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
    ToolCall,
)
from trueup.store import Store

__all__ = ["Scrub", "Scrubber", "scrub_text"]

R = TypeVar("R", bound=Record)
Scrub = Callable[[R], R]
Finder = Callable[[str, "Seen"], str]

IDENTIFIER = re.compile(r"[a-z0-9][\w.:/@-]*|[\w.:/@-]*[0-9_:/@-][\w.:/@-]*")
"""A word of machines, such as a model or a function: nobody's name, and not to be asked about."""

ROLES = frozenset(("system", "user", "assistant", "tool"))
"""These hide nothing."""


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
        self._is_on = config.scrubber != "off"
        self._find_names: Finder | None = None
        if config.scrubber == "presidio":
            from trueup.privacy.presidio import presidio_finder

            self._find_names = presidio_finder(config.presidio_model)

    def __call__(self, record: R) -> R:
        """The record without personal data; another one, with another id, where there was some."""
        hide = self._finder_for(record) if self._is_on else None
        changes = _changes(record, hide) if hide else {}
        if isinstance(record, Interaction):
            if "request_id" in changes:
                changes["request_id"] = self.request_id(record.request_id)
            if self._names and record.user:
                name = self._names.of(record.user, record.tenant)
                changes |= {"user": name} if name != record.user else {}
        return _changed(record, changes) if changes else record

    def request_id(self, name: str) -> str:
        """What a request id is in the store: a pseudonym where it holds personal data, so that two
        stay two and feedback still finds its answer."""
        if not self._is_on:
            return name
        hidden = scrub_text(name)
        return self._names.of_request(name) if self._names and hidden != name else hidden

    def leaves(self, text: str) -> bool:
        """True where nothing of a text would be hidden. False may mean nothing: only the cheap
        tests before the patterns are asked."""
        if not self._is_on:
            return True
        return self._find_names is None and not _groups_for(text)

    def _finder_for(self, record: Record) -> Finder | None:
        """What looks for what this record may have: the cheap tests are asked once, of all its
        texts together, and the patterns that none of them can hold are left out. None where
        nothing can be found."""
        parts: list[str] = []

        def collect(text: str, _: Seen) -> str:
            parts.append(text)
            return text

        _changes(record, collect)
        groups, find_names = _groups_for("\n".join(parts)), self._find_names
        if not groups and (find_names is None or not parts):
            return None

        def hide(text: str, seen: Seen) -> str:
            text = scrub_text(text, seen, groups)
            if find_names and not IDENTIFIER.fullmatch(text):
                return find_names(text, seen)
            return text

        return hide


def _groups_for(text: str) -> list[Group]:
    """The patterns that might find something in a text or in any part of it."""
    return [group for group in GROUPS if group.may_have(text)]


def scrub_text(text: str, seen: Seen | None = None, groups: Iterable[Group] = GROUPS) -> str:
    """The text with a placeholder for each find of the patterns.

    Args:
        seen: what was found before in the same record; new finds are added.
    """
    seen = Seen() if seen is None else seen
    for may_have, patterns in groups:
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
    made: dict[str, Any]
    if isinstance(record, Feedback):
        said = {"edit": record.edit, "comment": record.comment}
        made = {name: hide(text, seen) for name, text in said.items() if text}
    elif isinstance(record, Interaction):
        prompt = _messages(record.prompt, hide, seen)
        is_same = prompt is record.prompt
        made = {
            "prompt": prompt,
            "completion": _completion(record.completion, hide, seen, keep_tokens=is_same),
            "tools": _inside(record.tools, hide, seen) if record.tools else record.tools,
        }
        for name in ("error", "model", "request_id"):
            if text := getattr(record, name):
                made[name] = hide(text, seen)
    elif isinstance(record, Label | ReviewTask):
        prompt = _messages(record.prompt, hide, seen)
        is_same = prompt is record.prompt
        made = {
            "prompt": prompt,
            "candidates": tuple(
                _completion(one, hide, seen, keep_tokens=is_same) for one in record.candidates
            ),
        }
        if isinstance(record, Label):
            made["comment"] = hide(record.comment, seen) if record.comment else ""
            made["reasons"] = tuple(
                tuple(hide(one, seen) for one in reasons) for reasons in record.reasons
            )
    else:
        return {}
    kept = ((name, value, getattr(record, name)) for name, value in made.items())
    return {name: value for name, value, old in kept if value is not old and value != old}


def _messages(messages: Messages, hide: Finder, seen: Seen) -> Messages:
    """The same object where nothing was found."""
    made = tuple(_message(one, hide, seen) for one in messages)
    return messages if all(a is b for a, b in zip(made, messages, strict=True)) else made


def _message(message: Message, hide: Finder, seen: Seen) -> Message:
    """A call's id is hidden alike where it is made and where it is answered."""
    content = hide(message.content, seen)
    role = message.role if message.role in ROLES else hide(message.role, seen)
    calls = _calls(message.tool_calls, hide, seen) if message.tool_calls else ()
    answered = hide(message.tool_call_id, seen) if message.tool_call_id else ""
    made = (role, content, calls, answered)
    if made == (message.role, message.content, message.tool_calls, message.tool_call_id):
        return message
    names = ("role", "content", "tool_calls", "tool_call_id")
    return message.model_copy(update=dict(zip(names, made, strict=True)))


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
    asked = completion.sampling
    if asked and asked.stop:
        stop = tuple(hide(one, seen) for one in asked.stop)
        if stop != asked.stop:
            changes["sampling"] = asked.model_copy(update={"stop": stop})
    return completion.model_copy(update=changes) if changes else completion


def _calls(calls: tuple[ToolCall, ...], hide: Finder, seen: Seen) -> tuple[ToolCall, ...]:
    return tuple(
        call.model_copy(
            update={
                "id": hide(call.id, seen),
                "name": hide(call.name, seen),
                "arguments": hide(call.arguments, seen),
            }
        )
        for call in calls
    )


def _inside(value: Any, hide: Finder, seen: Seen) -> Any:
    """Every text inside of JSON, names of fields among them."""
    if isinstance(value, str):
        return hide(value, seen)
    if isinstance(value, dict):
        return {hide(key, seen): _inside(inner, hide, seen) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_inside(inner, hide, seen) for inner in value)
    return value


def _changed(record: R, changes: dict[str, Any]) -> R:
    """The record with other contents, and so another id."""
    made = record.model_copy(update=changes)
    object.__setattr__(made, "id", made.expected_id())
    return made
