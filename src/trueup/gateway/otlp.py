"""Traffic that OpenTelemetry saw: `POST /v1/traces` and `POST /v1/logs`, OTLP over HTTP.

Any exporter or collector can point here, as protobuf or JSON, gzipped or not. Spans and log
records of a model's answers become interactions; others pass by without a word, since there are
many. The promise: an answer of 200 means that what was not rejected is on disk.
"""

import base64
import importlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from trueup.capture import Recorder
from trueup.capture.shapes import Skip
from trueup.capture.spans import read_log, read_span
from trueup.gateway.body import MAX_BODY_BYTES, read_body
from trueup.gateway.durable import durably
from trueup.gateway.errors import RequestError
from trueup.gateway.keys import tenant_of
from trueup.records import Interaction

__all__ = ["LOGS", "TRACES", "OtlpRoute"]

PROTOBUF = "application/x-protobuf"
MAX_UNPACKED_BYTES = 4 * MAX_BODY_BYTES


class Signal(NamedTuple):
    """One kind of what OTLP carries."""

    route: str
    lists: tuple[str, str, str]
    """Lists in lists; in the last of them is what is read."""
    rejected: str
    """What the answer calls those that could not be used."""
    messages: tuple[str, str]
    """Where protobuf has the two messages, and what their names begin with."""
    read: Callable[[dict[str, Any], str | None], list[Interaction]]


TRACES = Signal(
    "/v1/traces",
    ("resourceSpans", "scopeSpans", "spans"),
    "rejectedSpans",
    ("opentelemetry.proto.collector.trace.v1.trace_service_pb2", "ExportTraceService"),
    read_span,
)
LOGS = Signal(
    "/v1/logs",
    ("resourceLogs", "scopeLogs", "logRecords"),
    "rejectedLogRecords",
    ("opentelemetry.proto.collector.logs.v1.logs_service_pb2", "ExportLogsService"),
    read_log,
)


class OtlpRoute:
    """Reads what a signal carries and answers after the commit."""

    def __init__(self, signal: Signal, recorder: Recorder) -> None:
        self._signal, self._recorder = signal, recorder

    async def post(self, request: Request) -> Response:
        """200 with `partialSuccess` where some of answers could not be used; 400 for what is no
        OTLP, 503 if the store cannot take them now: exporters try that again."""
        body = await read_body(request)
        packed = request.headers.get("content-encoding", "identity").strip().lower()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        problems = await durably(self._keep, body, packed, kind, tenant_of(request.scope))
        number = sum(problems.values())
        told = "; ".join(f"{why}: {count}" for why, count in problems.most_common(5))
        if kind == PROTOBUF:
            answer = _protobuf_answer(self._signal, number, told)
            return Response(answer, media_type=PROTOBUF)
        answer = {"partialSuccess": {self._signal.rejected: number, "errorMessage": told}}
        return Response(json.dumps(answer if number else {}), media_type="application/json")

    def _keep(self, body: bytes, packed: str, kind: str, tenant: str | None) -> Counter[str]:
        """Keep what can be; the others by reason."""
        problems: Counter[str] = Counter()
        groups: list[list[Interaction]] = []
        signal = self._signal
        for one in _each(_decoded(_unpacked(body, packed), kind, signal), signal):
            try:
                if group := signal.read(one, tenant):
                    groups.append(group)
            except Skip as skip:
                problems[skip.reason] += 1
            except RecursionError:
                problems["nested too deeply"] += 1
        for kept in self._recorder.keep(groups, route=signal.route):
            problems["could not be scrubbed"] += kept.skipped == "scrub"
            problems["was erased"] += kept.skipped == "erased"
        return +problems


def _unpacked(body: bytes, packed: str) -> bytes:
    if packed in ("", "identity"):
        return body
    if packed not in ("gzip", "deflate"):
        raise RequestError(
            "This packing is not read", got=packed, expected="gzip, deflate or none", status=415
        )
    try:
        unpacker = zlib.decompressobj(wbits=47 if packed == "gzip" else zlib.MAX_WBITS)
        text = unpacker.decompress(body, MAX_UNPACKED_BYTES)
    except zlib.error as error:
        raise RequestError("The request body is damaged", got=str(error), expected=packed) from None
    if unpacker.unconsumed_tail:
        raise RequestError(
            "The request body is too large when unpacked",
            got=f"more than {MAX_UNPACKED_BYTES} bytes",
            expected="smaller batches",
            next="lower the exporter's batch size",
            status=413,
        )
    if not unpacker.eof:
        raise RequestError("The request body is damaged", got="half of it", expected=packed)
    return text


def _decoded(body: bytes, kind: str, signal: Signal) -> Any:
    """The request in OTLP's JSON form."""
    if kind == "application/json":
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RequestError("The request body is not JSON", got=str(error)) from None
    if kind != PROTOBUF:
        raise RequestError(
            "This is not OTLP",
            got=kind or "no content type",
            expected=f"{PROTOBUF} or application/json",
            next="set the exporter's protocol to http/protobuf or http/json",
            status=415,
        )
    request = _protobuf(signal, "Request")
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    try:
        request.ParseFromString(body)
        found = MessageToDict(request)
    except (DecodeError, RecursionError, ValueError) as error:
        raise RequestError(
            "The request body is no OTLP protobuf",
            got=str(error),
            expected=f"an {signal.messages[1]}Request",
        ) from None
    for one in _each(found, signal):  # bytes are base64 there, and hexadecimal in OTLP
        if isinstance(one.get("spanId"), str):
            one["spanId"] = base64.b64decode(one["spanId"]).hex()
    return found


def _each(request: Any, signal: Signal) -> list[dict[str, Any]]:
    found = []
    outer, middle, inner = signal.lists
    for resource in _under(request, outer):
        for scope in _under(resource, middle):
            found.extend(_under(scope, inner))
    return found


def _under(value: Any, name: str) -> list[dict[str, Any]]:
    inner = value.get(name) if isinstance(value, dict) else None
    if inner is None and isinstance(value, dict):
        return []
    if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
        raise RequestError(f"'{name}' is no list of objects", got=inner, expected="OTLP")
    return inner


def _protobuf_answer(signal: Signal, number: int, told: str) -> bytes:
    answer = _protobuf(signal, "Response")
    if number:
        rejected = re.sub("[A-Z]", lambda letter: f"_{letter.group().lower()}", signal.rejected)
        setattr(answer.partial_success, rejected, number)
        answer.partial_success.error_message = told
    return answer.SerializeToString()


def _protobuf(signal: Signal, which: str) -> Any:
    """An empty message of protobuf: the signal's `Request` or `Response`."""
    module, name = signal.messages
    try:
        return getattr(importlib.import_module(module), name + which)()
    except ImportError as error:
        raise RequestError(
            "Reading OTLP as protobuf needs its message types",
            got=str(error),
            expected="the extra 'otlp'",
            next="pip install 'trueup[otlp]', or set the exporter's protocol to http/json",
            status=415,
        ) from None
