"""What an upstream said, put together for capture while its bytes pass by untouched.

Kept are text answers to text conversations. Requests that offer tools, and answers that call
them, are skipped and counted: an interaction is messages in and text out, and half of one would
teach the wrong thing. Log-probs and weights stay unknown: the upstream does not vouch for them.
"""

import json
import time
from typing import Any, Literal

from pydantic import ValidationError

from trueup.capture import Recorder
from trueup.gateway.chat import read_messages
from trueup.gateway.errors import RequestError
from trueup.gateway.local import choice_id
from trueup.records import Completion, Interaction, Sampling

__all__ = ["Transcript"]


class Transcript:
    """One upstream answer. Feed it, then `record` it, once; nothing here raises for bad content."""

    def __init__(self, asked: dict[str, Any], recorder: Recorder) -> None:
        self._asked, self._recorder = asked, recorder
        self._started = time.perf_counter()
        self._is_recorded = False
        self._line = b""
        self._request_id = ""
        self._usage: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}

    def feed(self, data: bytes) -> None:
        """The next bytes of an event stream; events may be cut anywhere. Records at `[DONE]`."""
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def read(self, body: bytes) -> None:
        """A whole answer, as one JSON object."""
        self._object(body, "message")

    def record(self) -> None:
        """Hand over what was said so far. Before the end of a stream the finish is "unknown"."""
        if not self._is_recorded:
            self._is_recorded = True
            self._recorder.record_from(self._interactions)

    def discard(self) -> None:
        """Keep nothing of this one: it is no answer."""
        self._is_recorded = True

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.record()  # before the client has seen it, so that feedback cannot come too soon
        elif data:
            self._object(data, "delta")

    def _object(self, data: bytes, key: Literal["delta", "message"]) -> None:
        try:
            said = json.loads(data)
            self._request_id = self._request_id or str(said.get("id") or "")
            self._usage = said.get("usage") or self._usage
            for raw in said.get("choices") or []:
                self._choices.setdefault(int(raw.get("index") or 0), _Choice()).add(
                    raw, raw.get(key) or {}
                )
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._choices[-1] = _Choice(is_text=False)  # garbled: no telling what is missing

    def _interactions(self) -> list[Interaction]:
        choices = [choice for _, choice in sorted(self._choices.items())]
        try:
            prompt = read_messages(self._asked.get("messages"))
        except RequestError:
            return []
        if self._asked.get("tools") or self._asked.get("functions"):
            return []
        if not all(choice.is_text for choice in choices) or not any(
            choice.text for choice in choices
        ):
            return []
        latency_ms = (time.perf_counter() - self._started) * 1000
        user, is_one = self._asked.get("user"), len(choices) == 1
        return [
            Interaction(
                prompt=prompt,
                source="gateway",
                request_id=choice_id(self._request_id, i),
                completion=Completion(
                    text=choice.text, finish_reason=choice.finish_reason, sampling=self._sampling()
                ),
                model=str(self._asked.get("model") or ""),
                user=user if isinstance(user, str) else None,
                input_tokens=self._tokens("prompt_tokens"),
                output_tokens=self._tokens("completion_tokens") if is_one else None,
                latency_ms=latency_ms,
            )
            for i, choice in enumerate(choices)
        ]

    def _tokens(self, name: str) -> int | None:
        number = self._usage.get(name) if isinstance(self._usage, dict) else None
        return number if isinstance(number, int) else None

    def _sampling(self) -> Sampling | None:
        """Only where the request names what matters; the upstream's defaults are not known here."""
        asked = self._asked
        max_tokens = asked.get("max_completion_tokens") or asked.get("max_tokens")
        if asked.get("temperature") is None or max_tokens is None:
            return None
        try:
            top_p = 1.0 if asked.get("top_p") is None else asked["top_p"]
            stop = asked.get("stop") or ()
            return Sampling(
                temperature=asked["temperature"],
                top_p=top_p,
                top_k=0 if asked.get("top_k") in (None, -1) else asked["top_k"],  # -1: vLLM's all
                min_p=asked.get("min_p") or 0.0,
                stop=(stop,) if isinstance(stop, str) else stop,
                max_tokens=max_tokens,
                seed=asked.get("seed"),
            )
        except ValidationError:
            return None  # the upstream takes what we could not write down


class _Choice:
    """One choice of the answer, as far as it was heard."""

    def __init__(self, *, is_text: bool = True) -> None:
        self.is_text = is_text
        self.finish_reason: Literal["stop", "length", "unknown"] = "unknown"
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, raw: dict[str, Any], said: dict[str, Any]) -> None:
        """Take a message, or the next delta of one."""
        if isinstance(said.get("content"), str):
            self._parts.append(said["content"])
        if said.get("tool_calls") or said.get("function_call") or said.get("audio"):
            self.is_text = False
        if raw.get("finish_reason") in ("stop", "length"):
            self.finish_reason = raw["finish_reason"]
