"""The quick way from a row to the store, for rows as most files have them.

A conversation of plain texts, or a prompt and a completion, needs no model of its parts: its
record's JSON is a frame with texts put in. The frames are cut from a real record, so they are
those of this version; what is not plain gives None and goes the long way, through `shapes`.

The promise: id and JSON are those that the long way gives, character by character.
"""

import hashlib
import json
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json as quoted

from trueup.capture.shapes import ROLES, TENANT_COLUMNS, USER_COLUMNS, Origin, Row
from trueup.records import Completion, Interaction, Message

__all__ = ["PlainRows"]

QUOTED = {name: (role, quoted(role)) for name, role in ROLES.items()}
OWNERS = {*USER_COLUMNS, *TENANT_COLUMNS}
ANSWER, CONTENT, ROLE, SOURCE, TIME = "<answer>", "<content>", "<role>", "<source>", "<time>"

Turn = tuple[bytes, bytes]


class PlainRows:
    """Rows of one origin, as the store's table of interactions has them."""

    def __init__(self, origin: Origin) -> None:
        self._source = f"file:{origin.file}"
        turn = Message(role=ROLE, content=CONTENT)
        answer = Completion(text=ANSWER, finish_reason="stop")
        probe = Interaction(prompt=(turn,), completion=answer, source=SOURCE, created_at=TIME)

        hashed = _canonical(probe.model_dump(mode="json", exclude={"id", "created_at"}))
        hashed_turn = _canonical(turn.model_dump(mode="json"))
        self._hash_turn = _cut(hashed_turn, quoted(CONTENT), quoted(ROLE))
        *self._hash, before, after = _cut(hashed, quoted(ANSWER), hashed_turn, quoted(SOURCE))
        self._hash_end = before + quoted(self._source) + after

        body, body_turn = probe.model_dump_json().encode(), turn.model_dump_json().encode()
        self._body_turn = _cut(body_turn, quoted(ROLE), quoted(CONTENT))
        marks = (probe.id.encode(), TIME.encode(), body_turn, quoted(ANSWER), quoted(SOURCE))
        *self._body, before, after = _cut(body, *marks)
        self._body_end = before + quoted(self._source) + after

    def row(
        self, raw: Row, now: str, leaves: Callable[[str], bool] | None = None
    ) -> tuple[Any, ...] | None:
        """id, time, source, request id, user, tenant, body; None where the row is not plain.

        Args:
            leaves: False for a text that may have to be scrubbed, which takes the long way, too.
        """
        try:
            said = _plain(raw)
        except ValueError:  # half of an emoji: the long way says so
            return None
        if said is None:
            return None
        turns, answer = said
        head, middle = self._hash
        before, between, behind = self._hash_turn
        prompt = b",".join([before + text + between + role + behind for role, text in turns])
        content = b"".join((head, answer, middle, prompt, self._hash_end))
        record_id = f"{Interaction.tag}_{hashlib.sha256(content).hexdigest()[:20]}"
        before, between, behind = self._body_turn
        prompt = b",".join([before + role + between + text + behind for role, text in turns])
        a, b, c, d = self._body
        name, time = record_id.encode(), now.encode()
        texts = b"".join((c, prompt, d, answer, self._body_end)).decode()
        if leaves and not leaves(texts):
            return None
        body = b"".join((a, name, b, time)).decode() + texts
        return record_id, now, self._source, "", None, None, body


def _plain(raw: Row) -> tuple[list[Turn], bytes] | None:
    """The turns before the answer (role and text, quoted) and the answer, quoted."""
    get = raw.get
    if get("label") is not None or get("chosen") is not None or not OWNERS.isdisjoint(raw):
        return None
    prompt, answer = get("prompt"), get("completion")
    if prompt is not None and answer is not None:
        if type(prompt) is not str or type(answer) is not str:
            return None
        if not prompt.strip() or not answer.strip():
            return None
        return [(QUOTED["user"][1], quoted(prompt))], quoted(answer)
    cells = get("messages")
    if cells is None:
        cells = None if get("system") else get("conversations")
    if type(cells) is not list or len(cells) < 2:
        return None
    turns: list[Turn] = []
    role = text = last_role = last_text = ""
    for cell in cells:
        if type(cell) is not dict or cell.get("tool_calls") or cell.get("function_call"):
            return None
        name, last_role, last_text = cell.get("role", cell.get("from")), role, text
        text = cell.get("content", cell.get("value"))
        if type(name) is not str or type(text) is not str or name not in QUOTED:
            return None
        role, shown = QUOTED[name]
        turns.append((shown, quoted(text)))
    if role != "assistant" or last_role != "user" or not text.strip() or not last_text.strip():
        return None
    return turns[:-1], turns[-1][1]


def _canonical(content: Any) -> bytes:
    """As `records.content_hash` writes it."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _cut(text: bytes, *marks: bytes) -> list[bytes]:
    """The pieces between marks, which come once each, in this order."""
    pieces = []
    for mark in marks:
        before, found, text = text.partition(mark)
        assert found and mark not in text, mark
        pieces.append(before)
    return [*pieces, text]
