"""A request and its answer, both as OpenAI's API writes them, become interactions.

For traffic that others saw: mirrored bodies, and spans that were put into this form. Chat and
text completions; an answer is a whole object, a list of stream chunks, or the stream's own text.

The promise: every choice is one interaction, or the whole is refused with a `Skip` that says why.
Half of a conversation would teach the wrong thing.
"""

import json
import re
from typing import Any, NamedTuple

from pydantic import ValidationError

from trueup.capture.shapes import Skip
from trueup.records import Completion, Interaction, Message, Sampling, ToolCall

__all__ = ["Sender", "read_interactions", "user_of"]

Json = dict[str, Any]

FINISHES = ("stop", "length", "tool_calls", "content_filter")
LINE_END = re.compile(r"\r\n|\n|\r")  # those of event streams; `splitlines` knows more
TEXT_PARTS = ("text", "input_text", "output_text")


class Sender(NamedTuple):
    """What is known of a request beside its two bodies."""

    source: str
    request_id: str = ""
    user: str | None = None
    tenant: str | None = None
    latency_ms: float | None = None
    error: str = ""


def read_interactions(asked: object, said: object, sender: Sender) -> list[Interaction]:
    """The interactions, one a choice.

    Args:
        said: None where there was no answer; then the sender knows of an error.

    Raises:
        Skip: they cannot be used.
    """
    if not isinstance(asked, dict):
        raise Skip("request is not an object", asked)
    answer = _answer(said)
    prompt, tools = _prompt(asked), asked.get("tools") or []
    _check_tools(tools)
    error = _whole(sender.error) or _error(answer)
    choices = answer.get("choices") or []
    if not isinstance(choices, list) or not (choices or error):
        raise Skip("no choices", choices)
    usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
    request_id = _text_of(sender.request_id) or _text_of(answer.get("id"))
    model = _text_of(asked.get("model")) or _text_of(answer.get("model"))
    try:
        completions = [_completion(one, asked) for one in choices] or [
            Completion(text="", sampling=_sampling(asked))
        ]
        return [
            Interaction(
                prompt=prompt,
                completion=completion,
                source=sender.source,
                request_id=f"{request_id}-{i}" if i and request_id else request_id,
                model=model,
                user=_text_of(sender.user) or _text_of(user_of(asked)) or None,
                tenant=_text_of(sender.tenant) or None,
                tools=tuple(tools),
                error=error,
                input_tokens=_count(usage, "prompt_tokens", "input_tokens"),
                output_tokens=_count(usage, "completion_tokens", "output_tokens")
                if len(completions) == 1
                else None,
                latency_ms=sender.latency_ms,
            )
            for i, completion in enumerate(completions)
        ]
    except (ValidationError, UnicodeEncodeError, ValueError) as error:
        raise Skip("a field cannot be used", str(error).splitlines()[0]) from None


def user_of(asked: Json) -> str | None:
    """Whose request it is: `user`, or the field that OpenAI has in its place by now."""
    names = (asked.get("user"), asked.get("safety_identifier"))
    return next((one for one in names if isinstance(one, str) and one), None)


def _check_tools(tools: object) -> None:
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Skip("tools are no list of objects", tools)
    try:
        json.dumps(tools, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Skip("tools cannot be written down") from None


# --- the request ------------------------------------------------------------------------------


def _prompt(asked: Json) -> tuple[Message, ...]:
    if isinstance(asked.get("prompt"), str) and "messages" not in asked:
        turns = [Message(role="user", content=_whole(asked["prompt"]))]
    else:
        raw = asked.get("messages")
        if not isinstance(raw, list):
            raise Skip("messages are no list", raw)
        turns = [_message(turn) for turn in raw]
    if not any(turn.content.strip() or turn.tool_calls for turn in turns):
        raise Skip("empty prompt")
    return tuple(turns)


def _message(turn: object) -> Message:
    if not isinstance(turn, dict):
        raise Skip("turn is not an object", turn)
    role = turn.get("role")
    if not isinstance(role, str) or not role:
        raise Skip("unknown role", role)
    return Message(
        role="system" if role == "developer" else _whole(role),
        content=_content(turn.get("content")),
        tool_calls=_calls(turn),
        tool_call_id=_text_of(turn.get("tool_call_id")),
    )


def _content(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in TEXT_PARTS or not isinstance(part.get("text"), str):
                raise Skip("content is not text", kind)
        value = "\n".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise Skip("content is not text", value)
    return _whole(value)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may hold half of an emoji, UTF-8 may not
        raise Skip("text is not valid Unicode", text[:40].encode("ascii", "replace")) from None
    return text


def _calls(turn: Json) -> tuple[ToolCall, ...]:
    raw = turn.get("tool_calls") or []
    if turn.get("function_call"):
        raw = [{"function": turn["function_call"]}]
    if not isinstance(raw, list):
        raise Skip("tool calls are no list", raw)
    calls = []
    for one in raw:
        function = one.get("function") if isinstance(one, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Skip("a tool call names no function", one)
        arguments = function.get("arguments") or ""
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(
            ToolCall(
                id=_text_of(one.get("id")),
                name=_whole(function["name"]),
                arguments=_whole(arguments),
            )
        )
    return tuple(calls)


def _sampling(asked: Json) -> Sampling | None:
    """Only where the request names what matters; the other server's defaults are not known."""
    max_tokens = asked.get("max_completion_tokens") or asked.get("max_tokens")
    if asked.get("temperature") is None or max_tokens is None:
        return None
    stop = asked.get("stop") or ()
    try:
        return Sampling(
            temperature=asked["temperature"],
            top_p=1.0 if asked.get("top_p") is None else asked["top_p"],
            top_k=0 if asked.get("top_k") in (None, -1) else asked["top_k"],
            min_p=asked.get("min_p") or 0.0,
            stop=(stop,) if isinstance(stop, str) else stop,
            max_tokens=max_tokens,
            seed=asked.get("seed"),
        )
    except ValidationError:
        return None


# --- the answer -------------------------------------------------------------------------------


def _answer(said: object) -> Json:
    """The answer as one object, put together where it came as a stream."""
    if said is None:
        return {}
    if isinstance(said, str):
        said = _events(said)
    if isinstance(said, list):
        return _together(said)
    if not isinstance(said, dict):
        raise Skip("response is not an object", said)
    return said


def _events(text: str) -> list[Any]:
    lines = (line[5:].strip() for line in LINE_END.split(text) if line.startswith("data:"))
    try:
        return [json.loads(line) for line in lines if line and line != "[DONE]"]
    except (ValueError, RecursionError):
        raise Skip("response is not a stream of JSON", text[:40]) from None


def _together(chunks: list[Any]) -> Json:
    whole: Json = {}
    choices: dict[int, Json] = {}
    for chunk in chunks:
        if not isinstance(chunk, dict):
            raise Skip("a chunk is not an object", chunk)
        whole |= {k: v for k, v in chunk.items() if k != "choices" and v is not None}
        for raw in chunk.get("choices") or []:
            if not isinstance(raw, dict) or not isinstance(raw.get("index", 0), int):
                raise Skip("a choice is not an object", raw)
            one = choices.setdefault(raw.get("index", 0), {"message": {"content": ""}})
            one["finish_reason"] = raw.get("finish_reason") or one.get("finish_reason")
            _add(one["message"], raw)
    whole["choices"] = [one for _, one in sorted(choices.items())]
    return whole


def _add(message: Json, raw: Json) -> None:
    delta = raw.get("delta") or {"content": raw.get("text")}
    if not isinstance(delta, dict):
        raise Skip("a delta is not an object", delta)
    message["content"] += _content(delta.get("content"))
    calls = message.setdefault("tool_calls", [])
    for part in delta.get("tool_calls") or []:
        function = part.get("function") if isinstance(part, dict) else None
        if not isinstance(function, dict):
            raise Skip("a tool call names no function", part)
        at = part.get("index", len(calls))
        if at == len(calls):
            calls.append({"id": part.get("id"), "function": {"name": "", "arguments": ""}})
        if not isinstance(at, int) or not 0 <= at < len(calls):
            raise Skip("a tool call has no place", at)
        for name in ("name", "arguments"):
            calls[at]["function"][name] += _text_of(function.get(name))


def _completion(choice: object, asked: Json) -> Completion:
    if not isinstance(choice, dict):
        raise Skip("a choice is not an object", choice)
    message = choice.get("message")
    if message is None:
        message = {"content": choice.get("text")}
    if not isinstance(message, dict):
        raise Skip("a message is not an object", message)
    if message.get("audio"):
        raise Skip("content is not text", "audio")
    finish: Any = choice.get("finish_reason")
    text = _content(message.get("content")) or _text_of(message.get("refusal"))
    calls = _calls(message)
    if not text and not calls:
        raise Skip("empty completion")
    return Completion(
        text=text,
        tool_calls=calls,
        finish_reason=finish if finish in FINISHES else "unknown",
        sampling=_sampling(asked),
    )


def _error(answer: Json) -> str:
    error = answer.get("error")
    if not error:
        return ""
    detail = error.get("message") or error.get("type") if isinstance(error, dict) else error
    return _whole(f"upstream: {detail}"[:200])


def _count(usage: Any, *names: str) -> int | None:
    for name in names:
        if type(usage.get(name)) is int:
            return usage[name]
    return None


def _text_of(value: object) -> str:
    return _whole(value) if isinstance(value, str) else ""
