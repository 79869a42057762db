"""What OpenTelemetry tells of a model's answer, in the form OpenAI's API writes it: spans, and logs
of the event that stands for one.

Three ways of writing them are read, told apart by the attributes that are there:

    current        gen_ai.input.messages, gen_ai.output.messages: JSON, on the span, on its event
                   gen_ai.client.inference.operation.details, or on a log record of that name
    previous       gen_ai.prompt.0.content, gen_ai.completion.0.content; or the events
                   gen_ai.user.message, gen_ai.choice and their kin
    OpenInference  llm.input_messages.0.message.content, llm.output_messages.0.message.content

A span is a dict as OTLP writes it in JSON, and so is a log record. Those about anything else are
none of ours.
"""

import json
from typing import Any

from trueup.capture.openai_form import Json, Sender, read_interactions
from trueup.capture.shapes import Skip
from trueup.records import Interaction

__all__ = ["read_log", "read_span"]

ANSWERS = ("chat", "text_completion", "generate_content", "completion")
DETAILS = "gen_ai.client.inference.operation.details"
EVENT_ROLES = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
}
FINISHES = {"tool_call": "tool_calls", "end_turn": "stop", "max_tokens": "length"}
ERROR_STATUS = (2, "STATUS_CODE_ERROR")


def read_span(span: Json, tenant: str | None = None) -> list[Interaction]:
    """The interactions of a span, one a choice; empty where it is not about a model's answer.

    Raises:
        Skip: it is, and cannot be used: its texts were not recorded, say.
    """
    said = _attributes(span.get("attributes"))
    events = [_event(one) for one in _list(span.get("events")) if isinstance(one, dict)]
    for name, more in events:
        if name == DETAILS:
            said = more | said
    if not _is_answer(said):
        return []
    prompt, choices = _conversation(said, events)
    error = _error(span, said)
    if not prompt:
        raise Skip("no messages: switch the recording of content on")
    if not choices and not error:
        raise Skip("no answer: switch the recording of content on")
    return read_interactions(
        _request(said, prompt),
        {"choices": choices, "usage": _usage(said)},
        Sender(
            source="otlp",
            request_id=_text(said, "gen_ai.response.id") or str(span.get("spanId") or ""),
            user=_text(said, "user.id", "enduser.id", "gen_ai.user.id") or None,
            tenant=tenant,
            latency_ms=_latency_ms(span),
            error=error,
        ),
    )


def read_log(record: Json, tenant: str | None = None) -> list[Interaction]:
    """As `read_span`, of a log record. It says all that a span would, but how long it took."""
    said = _attributes(record.get("attributes"))
    if (record.get("eventName") or said.get("event.name")) != DETAILS:
        return []
    when = record.get("timeUnixNano") or record.get("observedTimeUnixNano")
    return read_span(
        {
            "attributes": record.get("attributes"),
            "spanId": record.get("spanId") or when,
            "status": {"code": ERROR_STATUS[0]} if _text(said, "error.type") else None,
        },
        tenant,
    )


# --- values of OTLP ---------------------------------------------------------------------------


def _attributes(raw: object) -> Json:
    found = {}
    for one in _list(raw):
        if isinstance(one, dict) and isinstance(one.get("key"), str):
            found[one["key"]] = _value(one.get("value"))
    return found


def _value(raw: object) -> Any:
    """An AnyValue as plain JSON."""
    if not isinstance(raw, dict) or not raw:
        return None
    kind, value = next(iter(raw.items()))
    if kind == "arrayValue" and isinstance(value, dict):
        return [_value(one) for one in _list(value.get("values"))]
    if kind == "kvlistValue" and isinstance(value, dict):
        return _attributes(value.get("values"))
    if kind == "intValue":
        try:
            return int(value)  # 64-bit numbers are strings in JSON
        except (TypeError, ValueError, OverflowError):
            return None
    return value


def _event(raw: Json) -> tuple[str, Json]:
    """Its name, and its attributes; older writers put them into one, as JSON."""
    said = _attributes(raw.get("attributes"))
    inner = _parsed(said.get("gen_ai.event.content"))
    return str(raw.get("name") or ""), said | (inner if isinstance(inner, dict) else {})


def _parsed(value: Any) -> Any:
    """Attributes hold JSON as text, events may hold it as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(said: Json, *names: str) -> str:
    return next((said[n] for n in names if isinstance(said.get(n), str) and said[n]), "")


def _number(said: Json, *names: str) -> Any:
    found = (said.get(name) for name in names)
    return next((n for n in found if isinstance(n, int | float) and not isinstance(n, bool)), None)


def _numbered(said: Json, prefix: str) -> list[Json]:
    """`prefix.0.role`, `prefix.0.content`, `prefix.1.role` … as a list of nested objects."""
    tree: Json = {}
    for key, value in said.items():
        if key.startswith(prefix + "."):
            node = tree
            *path, last = key[len(prefix) + 1 :].split(".")
            for part in path:
                inner = node.setdefault(part, {})
                node = inner if isinstance(inner, dict) else {}
            node[last] = value
    return _in_order(tree)


def _in_order(tree: object) -> list[Json]:
    if not isinstance(tree, dict):
        return []
    places = sorted((key for key in tree if key.isdecimal()), key=int)
    return [tree[key] for key in places if isinstance(tree[key], dict)]


# --- what the span is about -------------------------------------------------------------------


def _is_answer(said: Json) -> bool:
    kind = _text(said, "openinference.span.kind", "traceloop.span.kind")
    if kind:
        return kind.upper() == "LLM"
    operation = _text(said, "gen_ai.operation.name", "llm.request.type")
    if operation:  # an agent's span repeats what its chat spans say
        return operation in ANSWERS
    starts = ("gen_ai.prompt.", "gen_ai.input.messages", "llm.input_messages.", "gen_ai.request.")
    return any(key.startswith(starts) for key in said)


def _conversation(said: Json, events: list[tuple[str, Json]]) -> tuple[list[Json], list[Json]]:
    """Messages and choices, by the first convention that has any."""
    if "gen_ai.input.messages" in said or "gen_ai.output.messages" in said:
        return _current(said)
    if prompt := _numbered(said, "gen_ai.prompt"):
        answers = _numbered(said, "gen_ai.completion")
        return [_previous(turn) for turn in prompt], [_choice(_previous(a), a) for a in answers]
    if prompt := _numbered(said, "llm.input_messages"):
        answers = _numbered(said, "llm.output_messages")
        return [_inference(turn) for turn in prompt], [_choice(_inference(a), a) for a in answers]
    return _told_in_events(events)


def _choice(message: Json, raw: Json) -> Json:
    finish = raw.get("finish_reason")
    return {"message": message, "finish_reason": FINISHES.get(str(finish), finish)}


def _current(said: Json) -> tuple[list[Json], list[Json]]:
    turns = _list(_parsed(said.get("gen_ai.input.messages")))
    answers = _list(_parsed(said.get("gen_ai.output.messages")))
    prompt = [one for turn in turns for one in _turns(turn)]
    system = _parsed(said.get("gen_ai.system_instructions"))
    if system:
        parts = system if isinstance(system, list) else [system]
        prompt = [*_turns({"role": "system", "parts": parts}), *prompt]
    choices = []
    for answer in answers:
        [message] = _turns(answer)[:1] or [{}]
        choices.append(_choice(message, answer if isinstance(answer, dict) else {}))
    return prompt, choices


def _turns(raw: object) -> list[Json]:
    """A message of parts; each result of a tool is a turn of its own."""
    if not isinstance(raw, dict) or not isinstance(raw.get("parts"), list):
        raise Skip("a message has no parts", raw)
    texts, calls, results = [], [], []
    for part in raw["parts"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append({"type": "text", "text": part.get("content")})
        elif kind == "tool_call":
            calls.append(_call(part.get("id"), part.get("name"), part.get("arguments")))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
            results.append({"role": "tool", "content": text, "tool_call_id": part.get("id")})
        elif kind != "reasoning":  # what was thought is no part of the answer
            raise Skip("content is not text", kind)
    own = {"role": raw.get("role"), "content": texts or None, "tool_calls": calls}
    return results if results and not texts and not calls else [own, *results]


def _call(call_id: Any, name: Any, arguments: Any) -> Json:
    return {"id": call_id, "function": {"name": name, "arguments": arguments}}


def _previous(turn: Json) -> Json:
    calls = _in_order(turn.get("tool_calls"))
    return {
        "role": turn.get("role"),
        "content": turn.get("content"),
        "tool_call_id": turn.get("tool_call_id"),
        "tool_calls": [_call(c.get("id"), c.get("name"), c.get("arguments")) for c in calls],
    }


def _inference(turn: Json) -> Json:
    message = turn.get("message")
    if not isinstance(message, dict):
        raise Skip("a message is not an object", message)
    content = message.get("content")
    parts = [p.get("message_content") for p in _in_order(message.get("contents"))]
    if content is None and parts:
        content = [p if isinstance(p, dict) else {} for p in parts]
    calls = [_in(c, "tool_call") for c in _in_order(message.get("tool_calls"))]
    functions = [_in(c, "function") for c in calls]
    return {
        "role": message.get("role"),
        "content": content,
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": [
            _call(_in(call, "id"), _in(function, "name"), _in(function, "arguments"))
            for call, function in zip(calls, functions, strict=True)
        ],
    }


def _in(value: object, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _told_in_events(events: list[tuple[str, Json]]) -> tuple[list[Json], list[Json]]:
    prompt, choices = [], []
    for name, said in events:
        if name in EVENT_ROLES:
            prompt.append(_told(said, EVENT_ROLES[name]))
        elif name == "gen_ai.choice":
            message = _parsed(said.get("message"))
            inner = message if isinstance(message, dict) else said
            choices.append(_choice(_told(inner, "assistant"), said))
    return prompt, choices


def _told(said: Json, role: str) -> Json:
    calls = _parsed(said.get("tool_calls")) or []
    return {
        "role": said.get("role") or role,
        "content": said.get("content"),
        "tool_call_id": said.get("id") if role == "tool" else None,
        "tool_calls": calls,
    }


# --- what is known beside the texts -----------------------------------------------------------


def _request(said: Json, prompt: list[Json]) -> Json:
    asked = _parsed(said.get("llm.invocation_parameters"))
    asked = dict(asked) if isinstance(asked, dict) else {}
    named = {
        "temperature": _number(said, "gen_ai.request.temperature"),
        "top_p": _number(said, "gen_ai.request.top_p"),
        "max_tokens": _number(said, "gen_ai.request.max_tokens"),
        "seed": _number(said, "gen_ai.request.seed"),
    }
    settings = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop")
    kept = {name: asked[name] for name in settings if name in asked}
    kept |= {name: value for name, value in named.items() if value is not None}
    model = _text(said, "gen_ai.request.model", "gen_ai.response.model", "llm.model_name")
    tools = _parsed(said.get("gen_ai.tool.definitions")) or []
    return {"messages": prompt, "model": model, "tools": tools, **kept}


def _usage(said: Json) -> Json:
    return {
        "input_tokens": _number(
            said,
            "gen_ai.usage.input_tokens",
            "gen_ai.usage.prompt_tokens",
            "llm.token_count.prompt",
        ),
        "output_tokens": _number(
            said,
            "gen_ai.usage.output_tokens",
            "gen_ai.usage.completion_tokens",
            "llm.token_count.completion",
        ),
    }


def _latency_ms(span: Json) -> float | None:
    try:
        begun, ended = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
        return (ended - begun) / 1e6 if ended >= begun else None
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _error(span: Json, said: Json) -> str:
    status = span.get("status")
    if not isinstance(status, dict) or status.get("code") not in ERROR_STATUS:
        return ""
    told = _text(said, "error.type", "error.message") or str(status.get("message") or "error")
    return f"upstream {told}"[:200]
