"""The gateway's own routes as OpenAPI 3.1: `GET /openapi.json`.

Written by hand, for the routes are few and their bodies are OpenAI's. What goes to an upstream
untouched is not described: that is the upstream's to do.
"""

from typing import Any

from trueup import __version__

__all__ = ["describe"]

ERRORS = {
    "400": "The request cannot be used",
    "401": "No such API key",
    "403": "The key may not do that",
    "404": "No such thing",
    "405": "No such method",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body's encoding is not known",
    "502": "The upstream cannot be reached",
    "503": "The champion cannot be served, or the disk is full",
    "504": "The upstream fell silent",
}
CHAT = {
    "type": "object",
    "required": ["messages"],
    "properties": {
        "model": {"type": "string"},
        "messages": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": ["system", "user", "assistant", "tool"]},
                    "content": {"type": "string"},
                },
            },
        },
        "temperature": {"type": "number", "minimum": 0, "maximum": 2},
        "max_tokens": {"type": "integer", "minimum": 1},
        "n": {"type": "integer", "minimum": 1, "maximum": 8},
        "stream": {"const": False},
        "user": {"type": "string"},
    },
}
FEEDBACK = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "request_id": {"type": "string", "minLength": 1},
        "interaction_id": {"type": "string", "minLength": 1},
        "rating": {"enum": [1, -1]},
        "edit": {"type": "string", "pattern": r"\S"},
        "comment": {"type": "string"},
    },
    "oneOf": [{"required": ["request_id"]}, {"required": ["interaction_id"]}],
    "anyOf": [{"required": ["rating"]}, {"required": ["edit"]}, {"required": ["comment"]}],
}
COMPLETION = {
    "type": "object",
    "required": ["id", "choices"],
    "properties": {"id": {"type": "string"}, "choices": {"type": "array"}},
}
KEPT = {
    "type": "object",
    "required": ["id", "object", "interaction_id"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "feedback"},
        "interaction_id": {"type": "string"},
    },
}
MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array"}},
}
CAPTURE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["request", "response"],
    "properties": {
        "request": {"type": "object"},
        "response": {"type": "object"},
        "request_id": {"type": "string"},
        "user": {"type": "string"},
        "tenant": {"type": "string"},
        "latency_ms": {"type": "number", "minimum": 0, "maximum": 1e11},
        "error": {"type": "string"},
    },
}
CAPTURED = {
    "type": "object",
    "required": ["object", "captured", "skipped", "rejected", "results"],
    "properties": {"object": {"const": "capture"}, "results": {"type": "array"}},
}
TRACES = {"type": "object", "properties": {"resourceSpans": {"type": "array"}}}
LOGS = {"type": "object", "properties": {"resourceLogs": {"type": "array"}}}
TAKEN = {"type": "object", "properties": {"partialSuccess": {"type": "object"}}}
HEALTH = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"enum": ["ok", "refusing"]}},
}
ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}},
        }
    },
}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"post": ("Answer a conversation", CHAT, COMPLETION)},
    "/v1/models": {"get": ("The models that answer", None, MODELS)},
    "/v1/feedback": {"post": ("Say what an answer was worth", FEEDBACK, KEPT)},
    "/v1/capture": {"post": ("Keep traffic that was answered elsewhere", CAPTURE, CAPTURED)},
    "/v1/traces": {"post": ("Keep spans of OpenTelemetry (OTLP/HTTP)", TRACES, TAKEN)},
    "/v1/logs": {"post": ("Keep log records of OpenTelemetry (OTLP/HTTP)", LOGS, TAKEN)},
    "/health": {"get": ("Whether requests can be answered", None, HEALTH)},
}
"""Path, method, and then: what it does, the body it takes, the body it gives."""


def describe() -> dict[str, Any]:
    """The description, as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "trueup gateway", "version": __version__},
        "security": [{}, {"key": []}],
        "paths": {
            path: {method: _operation(*told) for method, told in methods.items()}
            for path, methods in PATHS.items()
        },
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": ERROR},
        },
    }


def _operation(summary: str, body: Any, answer: Any) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "Done", **_json(answer)}}
        | {status: {"description": why, **_json(error)} for status, why in ERRORS.items()},
    }
    if body:
        found["requestBody"] = {"required": True, **_json(body)}
    if answer is HEALTH:
        found["responses"] = {
            status: {"description": why, **_json(HEALTH)}
            for status, why in (("200", "They can"), ("503", "They cannot"))
        }
        found["responses"]["405"] = {"description": ERRORS["405"], **_json(error)}
    return found


def _json(schema: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}
