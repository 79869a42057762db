"""What OpenAI's chat completions look like on the wire: requests in, completions and chunks out.

The promise: a field either has its effect or is refused. Fields that cannot change the answer
(`metadata`, `store`, …) are let through, and so are the others at the value that asks for
nothing: `tools: []`, `frequency_penalty: 0`, any field as null.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trueup.gateway.body import is_text
from trueup.gateway.config import ServeConfig
from trueup.gateway.errors import RequestError, not_supported
from trueup.records import Completion, Message, Messages, Sampling

__all__ = [
    "ChatRequest",
    "chunk",
    "completion_object",
    "logprobs_content",
    "parse_request",
    "read_messages",
    "usage",
]

HARMLESS = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "service_tier",
    "store",
}
"""Fields that change the bill or the bookkeeping, never the answer."""

NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "modalities": ["text"],
    "presence_penalty": 0,
    "response_format": {"type": "text"},
    "tool_choice": "none",
    "tools": [],
    "top_logprobs": 0,
}
"""Fields that are refused unless they have this value."""

MESSAGE_FIELDS = {"role", "content"}
GREEDY_BELOW = 1e-6  # logits divided by less overflow, and nobody means it
MAX_STOP = 4
SEED_RANGE = 2**40
"""Larger seeds are folded into this range; the sampler counts on from the seed in 64 bits."""


class ChatRequest(NamedTuple):
    """A request for one or more completions of a conversation."""

    prompt: Messages
    sampling: Sampling
    num_samples: int
    stream: bool
    include_usage: bool
    logprobs: bool
    user: str | None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Fields(BaseModel):
    """The fields that have an effect. Null means absent, as everywhere in this API."""

    model_config = ConfigDict(extra="ignore", strict=True)

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, lt=1)
    stop: Any = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    n: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    logprobs: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None


def parse_request(body: dict[str, Any], serve: ServeConfig) -> ChatRequest:
    """A request to the local model.

    `max_completion_tokens` goes before `max_tokens`; more than `serve.max_tokens` is cut to that,
    and the answer that it cuts off says so by its finish reason.

    Raises:
        RequestError: a field is malformed, or asks for what the local model does not do.
    """
    for name, value in body.items():
        is_known = name in _Fields.model_fields or name in HARMLESS
        if not is_known and value is not None and not _is_neutral(name, value):
            raise not_supported(name, value)
    try:
        fields = _Fields.model_validate(body)
    except ValidationError as error:
        problem = error.errors()[0]
        param = ".".join(map(str, problem["loc"]))
        raise RequestError(
            f"'{param}' cannot be used",
            got=problem.get("input"),
            expected=problem["msg"],
            next=f"mend '{param}'",
            param=param,
        ) from None
    if fields.model not in (None, serve.model_name):
        raise RequestError(
            "This server has no such model",
            got=fields.model,
            expected=serve.model_name,
            next="list what there is with GET /v1/models",
            status=404,
            param="model",
            code="model_not_found",
        )
    options = fields.stream_options
    return ChatRequest(
        prompt=read_messages(fields.messages),
        sampling=_sampling(fields, serve),
        num_samples=fields.n or 1,
        stream=bool(fields.stream),
        include_usage=bool(options and options.include_usage),
        logprobs=bool(fields.logprobs),
        user=fields.user or fields.safety_identifier,
    )


def read_messages(raw: Any) -> Messages:
    """The conversation as records. Text parts of a message are joined by line breaks.

    Raises:
        RequestError: a message is no text, or carries what the template would not show.
    """
    if not isinstance(raw, list):
        raise RequestError("'messages' is no list", got=raw, expected="messages", param="messages")
    return tuple(_message(f"messages.{i}", message) for i, message in enumerate(raw))


def completion_object(
    request_id: str,
    chat: ChatRequest,
    completions: Sequence[Completion],
    *,
    model: str,
    input_tokens: int,
    token_text: Callable[[int], str],
) -> dict[str, Any]:
    """The answer in one piece. `system_fingerprint` is the hash of the weights that wrote it."""
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": logprobs_content(completion.token_ids, completion.logprobs, token_text)
            if chat.logprobs
            else None,
            "finish_reason": _finish_reason(completion.finish_reason),
        }
        for i, completion in enumerate(completions)
    ]
    output_tokens = sum(len(c.token_ids or ()) for c in completions)
    return {
        "id": request_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": completions[0].weights,
        "choices": choices,
        "usage": usage(input_tokens, output_tokens),
    }


def chunk(head: dict[str, Any], index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One event of a stream. `head` is what all of them share."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    if choice["finish_reason"]:
        choice["finish_reason"] = _finish_reason(choice["finish_reason"])
    return {**head, "choices": [choice]}


def usage(input_tokens: int, output_tokens: int) -> dict[str, int]:
    """Token counts. The end-of-turn token counts, and so do those of a stop string: they were
    drawn, and have log-probs."""
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }


def logprobs_content(
    token_ids: Iterable[int] | None,
    logprobs: Iterable[float] | None,
    token_text: Callable[[int], str],
) -> dict[str, Any]:
    """Log-probs of every drawn token, the end-of-turn token and a stop string's tokens included.

    They are those of the model's own distribution whatever the temperature. `bytes` is null for
    a token that is part of a character.
    """
    content = []
    for token_id, logprob in zip(token_ids or (), logprobs or (), strict=True):
        text = token_text(token_id)
        whole = None if "\ufffd" in text else list(text.encode())
        content.append({"token": text, "bytes": whole, "logprob": logprob, "top_logprobs": []})
    return {"content": content, "refusal": None}


def _is_neutral(name: str, value: Any) -> bool:
    return name in NEUTRAL and value == NEUTRAL[name]


def _message(param: str, raw: Any) -> Message:
    if not isinstance(raw, dict) or not isinstance(raw.get("role"), str):
        raise RequestError(
            f"'{param}' is no message",
            got=raw,
            expected="an object with role and content",
            param=param,
        )
    for name, value in raw.items():
        if name not in MESSAGE_FIELDS and value not in (None, [], {}):
            raise not_supported(f"{param}.{name}", value)
    return Message(role=raw["role"], content=_content(f"{param}.content", raw.get("content")))


def _content(param: str, raw: Any) -> str:
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list):
        raise RequestError(
            f"'{param}' is no text",
            got=raw if raw is not None else "null",
            expected="a string or text parts",
            param=param,
        )
    for i, part in enumerate(raw):
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise not_supported(f"{param}.{i}", part)
    return "\n".join(part["text"] for part in raw)


def _sampling(fields: _Fields, serve: ServeConfig) -> Sampling:
    temperature = serve.temperature if fields.temperature is None else fields.temperature
    wanted = fields.max_completion_tokens or fields.max_tokens or serve.max_tokens
    return Sampling(
        temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=fields.top_k or 0,
        min_p=fields.min_p or 0.0,
        stop=_stop(fields.stop),
        max_tokens=min(wanted, serve.max_tokens),
        seed=None if fields.seed is None else fields.seed % SEED_RANGE,
    )


def _stop(raw: Any) -> tuple[str, ...]:
    """OpenAI's rules: a string, or up to four of them. An empty one would end every answer."""
    stop = [raw] if isinstance(raw, str) else [] if raw is None else raw
    if (
        not isinstance(stop, list)
        or len(stop) > MAX_STOP
        or not all(isinstance(one, str) and one and is_text(one) for one in stop)
    ):
        raise RequestError(
            "'stop' cannot be used",
            got=raw,
            expected=f"a string or a list of up to {MAX_STOP}, none of them empty",
            next="mend 'stop'",
            param="stop",
        )
    return tuple(stop)


def _finish_reason(reason: str) -> Literal["stop", "length"]:
    """OpenAI has no word for an answer that somebody broke off; "length" is the nearest."""
    return "stop" if reason == "stop" else "length"
