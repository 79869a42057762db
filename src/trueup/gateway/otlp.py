"""Traffic that OpenTelemetry saw: `POST /v1/traces`, OTLP over HTTP.

Any exporter or collector can point here, as protobuf or JSON, gzipped or not. Spans of a model's
answers become interactions; others pass by without a word, since a trace is full of them. The
promise: an answer of 200 means that what was not rejected is on disk.
"""

import asyncio
import base64
import json
import zlib
from collections import Counter
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from trueup.capture import Recorder
from trueup.capture.shapes import Skip
from trueup.capture.spans import read_span
from trueup.gateway.body import MAX_BODY_BYTES, read_body
from trueup.gateway.errors import RequestError
from trueup.gateway.keys import tenant_of
from trueup.records import Interaction

__all__ = ["TracesRoute"]

ROUTE = "/v1/traces"
PROTOBUF = "application/x-protobuf"
MAX_UNPACKED_BYTES = 4 * MAX_BODY_BYTES


class TracesRoute:
    """Reads spans and answers after the commit."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def post(self, request: Request) -> Response:
        """200 with `partialSuccess` where spans of answers could not be used; 400 for what is no
        OTLP, 503 if the store cannot take them now: exporters try that again."""
        body = await read_body(request)
        packed = request.headers.get("content-encoding", "identity").strip().lower()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        problems = await asyncio.to_thread(self._keep, body, packed, kind, tenant_of(request.scope))
        number = sum(problems.values())
        told = "; ".join(f"{why}: {count}" for why, count in problems.most_common(5))
        if kind == PROTOBUF:
            return Response(_protobuf_answer(number, told), media_type=PROTOBUF)
        answer = {"partialSuccess": {"rejectedSpans": number, "errorMessage": told}}
        return Response(json.dumps(answer if number else {}), media_type="application/json")

    def _keep(self, body: bytes, packed: str, kind: str, tenant: str | None) -> Counter[str]:
        """Keep what can be; the others by reason."""
        problems: Counter[str] = Counter()
        groups: list[list[Interaction]] = []
        for span in _spans(_decoded(_unpacked(body, packed), kind)):
            try:
                if group := read_span(span, tenant):
                    groups.append(group)
            except Skip as skip:
                problems[skip.reason] += 1
            except RecursionError:
                problems["nested too deeply"] += 1
        for one in self._recorder.keep(groups, route=ROUTE):
            problems["could not be scrubbed"] += one.skipped == "scrub"
            problems["was erased"] += one.skipped == "erased"
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
            expected="smaller batches of spans",
            next="lower the exporter's batch size",
            status=413,
        )
    if not unpacker.eof:
        raise RequestError("The request body is damaged", got="half of it", expected=packed)
    return text


def _decoded(body: bytes, kind: str) -> Any:
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
    request = _protobuf().ExportTraceServiceRequest()
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message import DecodeError

    try:
        request.ParseFromString(body)
        found = MessageToDict(request)
    except (DecodeError, RecursionError, ValueError) as error:
        raise RequestError(
            "The request body is no OTLP protobuf",
            got=str(error),
            expected="an ExportTraceServiceRequest",
        ) from None
    for span in _spans(found):  # bytes are base64 there, and hexadecimal in OTLP
        if isinstance(span.get("spanId"), str):
            span["spanId"] = base64.b64decode(span["spanId"]).hex()
    return found


def _spans(request: Any) -> list[dict[str, Any]]:
    found = []
    for resource in _under(request, "resourceSpans"):
        for scope in _under(resource, "scopeSpans"):
            found.extend(_under(scope, "spans"))
    return found


def _under(value: Any, name: str) -> list[dict[str, Any]]:
    inner = value.get(name) if isinstance(value, dict) else None
    if inner is None and isinstance(value, dict):
        return []
    if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
        raise RequestError(f"'{name}' is no list of objects", got=inner, expected="OTLP")
    return inner


def _protobuf_answer(number: int, told: str) -> bytes:
    answer = _protobuf().ExportTraceServiceResponse()
    if number:
        answer.partial_success.rejected_spans = number
        answer.partial_success.error_message = told
    return answer.SerializeToString()


def _protobuf() -> Any:
    try:
        from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
    except ImportError as error:
        raise RequestError(
            "Reading OTLP as protobuf needs its message types",
            got=str(error),
            expected="the extra 'otlp'",
            next="pip install 'trueup[otlp]', or set the exporter's protocol to http/json",
            status=415,
        ) from None
    return trace_service_pb2
