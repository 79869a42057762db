"""What an upstream said, put together for capture after its bytes have passed by untouched.

Kept are text answers to text conversations, calls of tools included: the text, the calls, the
tools that were offered, the log-probs as the upstream told them. What broke an answer off is kept
as its `error`, with the text that was said until then. Pictures and sound are skipped and counted.

On the request's side this only holds on to bytes; they are read by whoever puts the interactions
together, away from the request.
"""

import json
import math
import time
import zlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from trueup.capture import Recorder
from trueup.capture.openai_form import user_of
from trueup.gateway.body import as_object, is_text
from trueup.gateway.errors import RequestError, not_supported
from trueup.gateway.local import choice_id
from trueup.records import Completion, Interaction, Message, Messages, Sampling, ToolCall

__all__ = ["Heard", "Transcript", "inflated"]

MAX_HEARD_BYTES = 64 * 1024 * 1024
"""An answer over this is not transcribed; it passes all the same."""
DONE = (b"\ndata: [DONE]", b"\ndata:[DONE]", b"\rdata: [DONE]", b"\rdata:[DONE]")
GARBLED = "unreadable answer"
BROKEN_OFF = "upstream broke off"

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "unknown"]
FINISHES: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class Transcript:
    """One upstream answer. Feed it, then `record` it, once; nothing here raises for bad content."""

    def __init__(
        self,
        body: bytes,
        recorder: Recorder,
        *,
        route: str = "",
        request_id: str = "",
        tenant: str | None = None,
    ) -> None:
        """
        Args:
            body: the request's, a JSON object.
            route: path of the request, for the rules of capture.
            request_id: ours, for answers that never got an id of the upstream's.
        """
        self._body, self._recorder, self._route = body, recorder, route
        self._request_id, self._tenant = request_id, tenant
        self._started = time.perf_counter()
        self._is_recorded = self._is_stream = False
        self._encoding = ""
        self._heard: list[bytes] = [b"\n"]
        self._num_heard = 0

    def begin(self, *, is_stream: bool, encoding: str = "") -> None:
        """The answer's headers are here."""
        self._is_stream, self._encoding = is_stream, encoding

    def feed(self, data: bytes) -> None:
        """The next bytes of an answer, cut anywhere. A stream is recorded at its `[DONE]`, before
        the client has seen it, so that feedback cannot come too soon."""
        if self._num_heard <= MAX_HEARD_BYTES:
            self._heard.append(data)
            self._num_heard += len(data)
        if self._is_stream and b"]" in data and self._is_done():
            self.record()

    def record(self, error: str = "") -> None:
        """Hand over what was said so far.

        Args:
            error: what broke it off, if something did.
        """
        if not self._is_recorded:
            self._is_recorded = True
            heard = Heard(
                self._body,
                b"".join(self._heard)[1:] if self._num_heard <= MAX_HEARD_BYTES else None,
                self._is_stream,
                self._encoding,
                error,
                time.perf_counter() - self._started,
                self._request_id,
                self._tenant,
            )
            size = len(self._body) + self._num_heard
            self._recorder.record_later(heard, size=size, route=self._route)

    def _is_done(self) -> bool:
        tail, at = b"", len(self._heard)
        while len(tail) < 32 and at:
            at -= 1
            tail = self._heard[at] + tail
        return any(mark in tail[-64:] for mark in DONE)


# --- from here on, away from the request ----------------------------------------------------------


class Heard(NamedTuple):
    """A request and its answer, as bytes. Called, it gives the interactions; it can be pickled, so
    that another process may call it."""

    body: bytes
    answer: bytes | None
    """None where it was too long to be kept."""
    is_stream: bool
    encoding: str
    error: str
    seconds: float
    request_id: str
    tenant: str | None

    def __call__(self) -> list[Interaction]:
        """One interaction a choice; none where something in it is no text."""
        asked = as_object(self.body)
        try:
            prompts = read_prompts(asked)
        except RequestError:
            return []
        if self.answer is None:
            return []
        answer = _Answer()
        if self.answer:
            self._hear(self.answer, answer)
        if not all(choice.is_text for choice in answer.choices.values()):
            return []
        error = self.error or answer.error
        if not answer.choices:
            answer.choices[0] = _Choice()
            error = error or GARBLED
        if self.is_stream and not error and not answer.is_complete:
            error = BROKEN_OFF
        return self._records(asked, answer, prompts, error)

    def _hear(self, data: bytes, answer: "_Answer") -> None:
        if self.encoding not in ("", "identity"):
            found = inflated(data, self.encoding, MAX_HEARD_BYTES)
            if found is None or len(found) > MAX_HEARD_BYTES:
                answer.error = GARBLED
                return
            data = found
        # a byte that is no UTF-8 costs its character, not the answer
        text = data.decode("utf-8", "replace")
        if not self.is_stream:
            if not self.error:
                answer.add(text, "message")
            return
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        answer.events([line[5:].strip() for line in text.split("\n") if line[:5] == "data:"])

    def _records(
        self, asked: dict[str, Any], answer: "_Answer", prompts: Sequence[Messages], error: str
    ) -> list[Interaction]:
        choices = sorted(answer.choices.items())
        is_one = len(choices) == 1
        sampling, tools = _sampling(asked), _tools(asked)
        request_id = answer.request_id or self.request_id
        each = max(1, _count(asked.get("n")))
        return [
            Interaction(
                prompt=(prompt := prompts[min(index // each, len(prompts) - 1)]),
                source="gateway",
                request_id=choice_id(request_id, at),
                completion=choice.completion(sampling, echoed=_echoed(asked, prompt)),
                model=str(asked.get("model") or ""),
                user=user_of(asked),
                tenant=self.tenant,
                tools=tools,
                error=error,
                input_tokens=answer.tokens("prompt_tokens"),
                output_tokens=answer.tokens("completion_tokens") if is_one else None,
                latency_ms=self.seconds * 1000,
            )
            for at, (index, choice) in enumerate(choices)
        ]


class _Answer:
    """What an upstream's JSON said, whole or event by event."""

    def __init__(self) -> None:
        self.request_id = self.error = ""
        self.choices: dict[int, _Choice] = {}
        self._usage: Any = {}
        self._is_done = False

    @property
    def is_complete(self) -> bool:
        """True where a stream said that it was over, in either way."""
        ends = [choice.finish_reason != "unknown" for choice in self.choices.values()]
        return self._is_done or (bool(ends) and all(ends))

    def events(self, data: list[str]) -> None:
        """The `data:` lines of a stream."""
        self._is_done = "[DONE]" in data
        told = [one for one in data if one and one != "[DONE]"]
        try:  # all at once takes half the time of one by one
            found = json.loads(f"[{','.join(told)}]")
        except (ValueError, RecursionError):
            for one in told:
                self.add(one, "delta")
            return
        for one in found:
            self._add(one, "delta")

    def add(self, data: str, key: Literal["delta", "message"]) -> None:
        """One JSON object of the answer."""
        try:
            said = json.loads(data)
        except (ValueError, RecursionError):
            self.error = self.error or GARBLED
        else:
            self._add(said, key)

    def _add(self, said: Any, key: Literal["delta", "message"]) -> None:
        try:
            if said.get("error"):
                self.error = self.error or "upstream error"
            self.request_id = self.request_id or str(said.get("id") or "")
            self._usage = said.get("usage") or self._usage
            for raw in said.get("choices") or ():
                index = int(raw.get("index") or 0)
                choice = self.choices.get(index)
                if choice is None:
                    choice = self.choices[index] = _Choice()
                choice.add(raw, raw.get(key) or {})
        except (ValueError, TypeError, AttributeError):
            self.error = self.error or GARBLED

    def tokens(self, name: str) -> int | None:
        number = self._usage.get(name) if isinstance(self._usage, dict) else None
        return number if isinstance(number, int) else None


class _Choice:
    """One choice of the answer, as far as it was heard."""

    def __init__(self) -> None:
        self.is_text = True
        self.finish_reason: FinishReason = "unknown"
        self._parts: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._logprobs: list[Any] = []
        self._is_without_logprobs = False

    def add(self, raw: dict[str, Any], said: dict[str, Any]) -> None:
        """Take a message, the next delta of one, or a piece of a plain completion."""
        text = raw["text"] if "text" in raw else said.get("content")
        text = text if isinstance(text, str) else said.get("refusal")
        if isinstance(text, str) and text:
            self._parts.append(text)
        if said.get("audio"):
            self.is_text = False
        for at, call in enumerate(said.get("tool_calls") or ()):
            self._call(call.get("index", at), call.get("id"), call.get("function") or {})
        if function := said.get("function_call"):
            self._call(0, "", function)
        self._hear_logprobs(raw.get("logprobs"), has_text=bool(text))
        finish = raw.get("finish_reason")
        if isinstance(finish, str):
            self.finish_reason = FINISHES.get(finish, "unknown")

    def completion(self, sampling: Sampling | None, *, echoed: str) -> Completion:
        """The choice as a record, without the prompt where the request had it echoed."""
        text = _whole("".join(self._parts))
        return Completion(
            text=text.removeprefix(echoed),
            tool_calls=tuple(
                ToolCall(id=one["id"], name=one["name"], arguments=_whole(one["arguments"]))
                for _, one in sorted(self._calls.items())
            ),
            logprobs=None if echoed else self._told_logprobs(),
            finish_reason=self.finish_reason,
            sampling=sampling,
        )

    def _call(self, index: int, call_id: Any, function: dict[str, Any]) -> None:
        """A call, or the next piece of one: name and id come whole, arguments in parts."""
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        call["id"] = call["id"] or str(call_id or "")
        call["name"] = call["name"] or str(function.get("name") or "")
        call["arguments"] += str(function.get("arguments") or "")

    def _hear_logprobs(self, raw: Any, *, has_text: bool) -> None:
        if not isinstance(raw, dict):
            self._is_without_logprobs |= has_text
        elif isinstance(raw.get("token_logprobs"), list):  # /v1/completions
            self._logprobs += raw["token_logprobs"]
        else:
            for one in [*(raw.get("content") or []), *(raw.get("refusal") or [])]:
                self._logprobs.append(one.get("logprob"))

    def _told_logprobs(self) -> tuple[float, ...] | None:
        """All of them or none: a mean over some tokens is no mean of the answer."""
        told = self._logprobs
        if self._is_without_logprobs or not told:
            return None
        if not all(type(one) in (int, float) and math.isfinite(one) for one in told):
            return None
        return tuple(map(float, told))


# --- the request ----------------------------------------------------------------------------------


def read_prompts(asked: dict[str, Any]) -> list[Messages]:
    """The conversation of a chat request; of a plain completion's prompt (or several) one
    conversation each, with the text as its only, user's message.

    Raises:
        RequestError: it holds what is no text: pictures, sound, token ids, a suffix to lead to.
    """
    if "messages" in asked or "prompt" not in asked:
        raw = asked.get("messages")
        if not isinstance(raw, list) or not raw:
            raise RequestError("'messages' is no list", got=raw, param="messages")
        return [tuple(_message(i, one) for i, one in enumerate(raw))]
    raw = asked["prompt"]
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise RequestError("'prompt' is no text", got=raw, param="prompt")
    if asked.get("suffix"):
        raise not_supported("suffix", asked["suffix"])
    return [(Message(role="user", content=_whole(one)),) for one in texts]


def _message(index: int, raw: Any) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise RequestError(f"'messages.{index}' is no message", got=raw)
    content = raw.get("content")
    content = raw.get("refusal") or "" if content is None else content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        content = "\n".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str) or raw.get("audio"):
        raise RequestError(f"'messages.{index}' is no text", got=raw)
    is_function = raw["role"] == "function"
    answers = raw.get("name") if is_function else raw.get("tool_call_id")
    return Message(
        role="tool" if is_function else raw["role"],
        content=_whole(content),
        tool_calls=tuple(_calls(raw)),
        tool_call_id=str(answers or ""),
    )


def _calls(raw: dict[str, Any]) -> list[ToolCall]:
    called = list(raw.get("tool_calls") or [])
    if raw.get("function_call"):
        called.append({"function": raw["function_call"]})
    found = []
    for one in called:
        function = one.get("function") if isinstance(one, dict) else None
        if not isinstance(function, dict):
            raise not_supported("tool_calls", one)
        found.append(
            ToolCall(
                id=str(one.get("id") or ""),
                name=str(function.get("name") or ""),
                arguments=str(function.get("arguments") or ""),
            )
        )
    return found


def _whole(text: str) -> str:
    """The halves of a character that a stream cut in two, as one; a half alone, which JSON may hold
    and no store can, costs that character and not the text."""
    if is_text(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tools(asked: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = [one for one in _list(asked.get("tools")) if isinstance(one, dict)]
    functions = [one for one in _list(asked.get("functions")) if isinstance(one, dict)]
    return (*tools, *({"type": "function", "function": one} for one in functions))


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _count(raw: Any) -> int:
    return raw if type(raw) is int else 1


def _echoed(asked: dict[str, Any], prompt: Messages) -> str:
    return prompt[0].content if asked.get("echo") is True and "prompt" in asked else ""


def _sampling(asked: dict[str, Any]) -> Sampling | None:
    """Only where the request names what matters; the upstream's defaults are not known here."""
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


def inflated(data: bytes, encoding: str, most: int) -> bytes | None:
    """`data` unpacked, as far as it is there; a byte more than `most` where it is longer. None for
    what is damaged, or neither gzip nor deflate."""
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    reader = zlib.decompressobj(wbits=47)  # 32 + 15: gzip or zlib, whichever it begins with
    try:
        return reader.decompress(data, most + 1)
    except zlib.error:
        return None
