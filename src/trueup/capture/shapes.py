"""One row of a file becomes one record, whatever its publisher called the columns.

    openai               messages: […, an assistant turn]             Interaction
    prompt-completion    prompt, completion: text or turns            Interaction
    sharegpt             conversations: […, a model turn]             Interaction
    preference           prompt, chosen, rejected: text or turns      Label, two candidates
    sharegpt-preference  conversations, chosen, rejected: one turn    Label, two candidates
    hh                   chosen, rejected: dialogues as one text      Label, two candidates
    implicit             chosen, rejected: dialogues as turns         Label, two candidates

A row of the first three with a boolean `label` is unpaired signal: a Label with one candidate,
scored +1 or -1. A turn is {"role", "content"} or {"from", "value"}. `user` (or `user_id`, or
`safety_identifier`) and `tenant` say whose an interaction is. Other columns are left alone.

The promise: a row gives exactly one record, or raises `Skip` with the reason. Nothing is guessed:
text is stored as it stands (only the blanks around an `hh` turn, which belong to its markup, go).
"""

import re
from collections.abc import Callable
from itertools import takewhile
from typing import Any, NamedTuple

from trueup.records import AnnotatorKind, Completion, Interaction, Label, Message, Messages

__all__ = ["SHAPES", "Origin", "Shape", "Skip", "to_record"]

Row = dict[str, Any]

USER_COLUMNS = ("user", "user_id", "safety_identifier")
TENANT_COLUMNS = ("tenant",)

ROLES = {
    "system": "system",
    "developer": "system",  # the newer name of the same turn in OpenAI's API
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
MARKER = re.compile(r"\n\n(Human|Assistant):")  # mid-paragraph, the same words are only words


class Skip(Exception):
    """Why a row gives no record. The importer counts it; callers of the importer never see it."""

    def __init__(self, reason: str, got: object = None) -> None:
        super().__init__(reason)
        self.reason, self.got = reason, got


class Origin(NamedTuple):
    """Where rows come from, and who judged them."""

    file: str
    annotator_kind: AnnotatorKind = "human"


class Answer(NamedTuple):
    """A prompt and what was answered."""

    prompt: Messages
    text: str


class Preference(NamedTuple):
    """A prompt, the answer that was preferred, and the one that was not."""

    prompt: Messages
    chosen: str
    rejected: str


class Shape(NamedTuple):
    """A way of writing rows: how to know it, and how to read it."""

    name: str
    matches: Callable[[Row], bool]
    parse: Callable[[Row], Answer | Preference]


def to_record(row: object, origin: Origin, shape: str | None = None) -> Interaction | Label:
    """The record a row stands for.

    Args:
        shape: a name from `SHAPES`; by default the first that matches.

    Raises:
        Skip: the row cannot be used.
    """
    if not isinstance(row, dict):
        raise Skip("row is not an object", type(row).__name__)
    parsed = _shape_of(row, shape).parse(row)
    if isinstance(parsed, Preference):
        return _label(origin, parsed.prompt, (parsed.chosen, parsed.rejected), (1.0, 0.0))
    desirable = row.get("label")
    if desirable is None:
        return Interaction(
            prompt=parsed.prompt,
            completion=_completion(parsed.text),
            source=f"file:{origin.file}",
            user=_owner(row, USER_COLUMNS),
            tenant=_owner(row, TENANT_COLUMNS),
        )
    if not isinstance(desirable, bool):  # 1 may be "good" or one star of five
        raise Skip("label is neither true nor false", desirable)
    return _label(origin, parsed.prompt, (parsed.text,), (1.0 if desirable else -1.0,))


def _owner(row: Row, columns: tuple[str, ...]) -> str | None:
    """The first of these columns that holds a name or a number; others name nobody."""
    found = (row.get(name) for name in columns)
    named = (one for one in found if isinstance(one, str) or _is_number(one))
    return next((_text(str(one)) for one in named if one != ""), None)


def _is_number(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _shape_of(row: Row, wanted: str | None) -> Shape:
    for shape in SHAPES:
        if wanted in (None, shape.name) and shape.matches(row):
            return shape
    raise Skip(f"not of shape '{wanted}'" if wanted else "no known shape", sorted(row))


def _label(
    origin: Origin, prompt: Messages, texts: tuple[str, ...], scores: tuple[float, ...]
) -> Label:
    return Label(
        prompt=prompt,
        candidates=tuple(_completion(text) for text in texts),
        scores=scores,
        annotator=f"import:{origin.file}",
        annotator_kind=origin.annotator_kind,
        source=f"file:{origin.file}",
    )


def _completion(text: str) -> Completion:
    return Completion(text=text, finish_reason="stop")


# --- the shapes -------------------------------------------------------------------------------


def _openai(row: Row) -> Answer:
    return _ends_in_answer(_turns(row["messages"]))


def _sharegpt(row: Row) -> Answer:
    return _ends_in_answer(_sharegpt_turns(row))


def _prompt_completion(row: Row) -> Answer:
    prompt = _turns(row["prompt"])
    return _answer(prompt, _reply(row["completion"], prompt))


def _preference(row: Row) -> Preference:
    prompt = _turns(row["prompt"])
    return _pair(prompt, _reply(row["chosen"], prompt), _reply(row["rejected"], prompt))


def _sharegpt_preference(row: Row) -> Preference:
    prompt = _sharegpt_turns(row)
    return _pair(prompt, _reply(row["chosen"], prompt), _reply(row["rejected"], prompt))


def _hh(row: Row) -> Preference:
    return _fork(_dialogue(row["chosen"]), _dialogue(row["rejected"]))


def _implicit(row: Row) -> Preference:
    return _fork(_turns(row["chosen"]), _turns(row["rejected"]))


def _has(*columns: str) -> Callable[[Row], bool]:
    """Matches rows with a value in each column: tables write null for a column they lack."""
    return lambda row: all(row.get(column) is not None for column in columns)


def _is_hh(row: Row) -> bool:
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        return False
    return any(side.lstrip().startswith(("Human:", "Assistant:")) for side in (chosen, rejected))


def _is_implicit(row: Row) -> bool:
    return isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list)


# Two answers before one: a row that has `messages` as well as `chosen` is a preference.
SHAPES = (
    Shape("preference", _has("prompt", "chosen", "rejected"), _preference),
    Shape("sharegpt-preference", _has("conversations", "chosen", "rejected"), _sharegpt_preference),
    Shape("hh", _is_hh, _hh),
    Shape("implicit", _is_implicit, _implicit),
    Shape("prompt-completion", _has("prompt", "completion"), _prompt_completion),
    Shape("openai", _has("messages"), _openai),
    Shape("sharegpt", _has("conversations"), _sharegpt),
)


# --- from cells to turns ----------------------------------------------------------------------


def _turns(value: Any, role: str = "user") -> Messages:
    """The turns of a cell; plain text is one turn of `role`."""
    if isinstance(value, str):
        return (Message(role=role, content=_text(value)),)
    if isinstance(value, dict):
        return (_message(value),)
    if isinstance(value, list):
        return tuple(_message(turn) for turn in value)
    raise Skip("neither text nor turns", value)


def _sharegpt_turns(row: Row) -> Messages:
    """The conversation, led by the system prompt that some publishers keep in its own column."""
    turns, system = _turns(row["conversations"]), row.get("system")
    return (Message(role="system", content=_text(system)), *turns) if system else turns


def _dialogue(text: str) -> Messages:
    """The turns of one text in which each begins with a blank line and `Human:` or `Assistant:`."""
    before, *parts = MARKER.split("\n\n" + text.lstrip())
    if before.strip():
        raise Skip("text before the first turn", before.strip())
    return tuple(
        Message(role=ROLES[who.lower()], content=_text(said.strip()))
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Skip("turn is not an object", turn)
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise Skip("unknown role", role)
    if turn.get("tool_calls") or turn.get("function_call"):  # its text is half of what was said
        raise Skip("content is not text", "a tool call")
    return Message(role=ROLES[role.lower()], content=_text(turn.get("content", turn.get("value"))))


def _text(value: Any) -> str:
    if isinstance(value, list) and value and all(_is_text_part(part) for part in value):
        value = "\n".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise Skip("content is not text", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may hold half of an emoji, UTF-8 may not
        raise Skip("text is not valid Unicode", value) from None
    return value


def _is_text_part(part: Any) -> bool:
    is_text = isinstance(part, dict) and part.get("type") == "text"
    return is_text and isinstance(part.get("text"), str)


# --- from turns to an answer, or two ----------------------------------------------------------


def _ends_in_answer(turns: Messages) -> Answer:
    if not turns or turns[-1].role != "assistant":
        raise Skip("no final assistant turn", [turn.role for turn in turns])
    return _answer(turns[:-1], turns[-1].content)


def _reply(cell: Any, prompt: Messages) -> str:
    """The one answer in a cell, which may repeat the prompt before it (as UltraFeedback does)."""
    turns = _turns(cell, role="assistant")
    own = turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns
    if not own or own[-1].role != "assistant":
        raise Skip("no final assistant turn", [turn.role for turn in own])
    reply = own[-1]
    if len(own) > 1:
        raise Skip("answer has several turns", [turn.role for turn in own])
    return reply.content


def _fork(chosen: Messages, rejected: Messages) -> Preference:
    """The turns two dialogues share, and the replies in which they part.

    Dialogues that part before their last turn go on from different replies; what follows is no
    answer to the shared prompt and is left out.
    """
    for side in (chosen, rejected):
        if not side or side[-1].role != "assistant":
            raise Skip("no final assistant turn", [turn.role for turn in side])
    if chosen == rejected:
        raise Skip("chosen equals rejected", chosen[-1].content)
    both = zip(chosen, rejected, strict=False)
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], both)))
    replies = chosen[shared : shared + 1] + rejected[shared : shared + 1]
    if [turn.role for turn in replies] != ["assistant", "assistant"]:
        raise Skip("prompts differ", f"{shared} turns in common")
    return _pair(chosen[:shared], replies[0].content, replies[1].content)


def _answer(prompt: Messages, text: str) -> Answer:
    _require_prompt(prompt)
    if not text.strip():
        raise Skip("empty completion")
    return Answer(prompt, text)


def _pair(prompt: Messages, chosen: str, rejected: str) -> Preference:
    _require_prompt(prompt)
    for side, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise Skip("empty completion", side)
    if chosen.strip() == rejected.strip():  # blanks at the ends are nobody's preference
        raise Skip("chosen equals rejected", chosen)
    return Preference(prompt, chosen, rejected)


def _require_prompt(prompt: Messages) -> None:
    if not prompt or not prompt[-1].content.strip():
        raise Skip("empty prompt")
    if prompt[-1].role != "user":  # there is nobody to answer
        raise Skip("prompt does not end in a user turn", [turn.role for turn in prompt])
