"""`POST /v1/traces`: what the real SDK exports, in each convention, and what is no OTLP at all."""

import gzip
import json
import random
from collections.abc import Iterator

import pytest
from opentelemetry._logs import LogRecord
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.trace import Status, StatusCode, Tracer
from starlette.applications import Starlette

from trueup.records import Interaction
from trueup.store import Store

DETAILS = "gen_ai.client.inference.operation.details"
CURRENT = {
    "gen_ai.operation.name": "chat",
    "gen_ai.request.model": "gpt-x",
    "gen_ai.request.temperature": 0.5,
    "gen_ai.request.max_tokens": 20,
    "gen_ai.response.id": "chatcmpl-7",
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 4,
    "gen_ai.system_instructions": json.dumps([{"type": "text", "content": "Be kind"}]),
    "gen_ai.input.messages": json.dumps(
        [{"role": "user", "parts": [{"type": "text", "content": "Hello?"}]}]
    ),
    "gen_ai.output.messages": json.dumps(
        [
            {
                "role": "assistant",
                "parts": [
                    {"type": "reasoning", "content": "hm"},
                    {"type": "text", "content": "Hi."},
                ],
                "finish_reason": "stop",
            }
        ]
    ),
}
PREVIOUS = {
    "llm.request.type": "chat",
    "gen_ai.request.model": "gpt-x",
    "gen_ai.prompt.0.role": "user",
    "gen_ai.prompt.0.content": "Hello?",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.content": "Hi.",
    "gen_ai.completion.0.finish_reason": "stop",
    "gen_ai.usage.prompt_tokens": 11,
    "gen_ai.usage.completion_tokens": 4,
}
INFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "gpt-x",
    "llm.invocation_parameters": json.dumps({"temperature": 0.5, "max_tokens": 20}),
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.contents.0.message_content.type": "text",
    "llm.input_messages.0.message.contents.0.message_content.text": "Hello?",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.content": "Hi.",
    "llm.token_count.prompt": 11,
    "llm.token_count.completion": 4,
    "user.id": "ann",
}
TOOLS = {
    "gen_ai.operation.name": "chat",
    "gen_ai.input.messages": json.dumps(
        [
            {"role": "user", "parts": [{"type": "text", "content": "Weather?"}]},
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "c", "name": "f", "arguments": {"a": 1}}],
            },
            {
                "role": "tool",
                "parts": [{"type": "tool_call_response", "id": "c", "response": {"rain": True}}],
            },
        ]
    ),
    "gen_ai.output.messages": json.dumps(
        [{"role": "assistant", "parts": [{"type": "text", "content": "Rain."}]}]
    ),
}


@pytest.fixture
def gateway(open_gateway, run_app):
    with run_app(Starlette()) as nobody, open_gateway(None, upstream=nobody) as gateway:
        yield gateway


@pytest.fixture(params=[Compression.NoCompression, Compression.Gzip])
def tracer(gateway, request) -> Iterator[Tracer]:
    """The SDK as an application sets it up; each span is exported as it ends."""
    provider = TracerProvider()
    exporter = OTLPSpanExporter(f"{gateway.url}/v1/traces", compression=request.param, timeout=60)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider.get_tracer("tests")
    provider.shutdown()


def on_disk(gateway) -> list[Interaction]:
    own = Store(gateway.store.folder)
    found = own.all(Interaction)
    own.close()
    return found


def any_value(value):
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(one) for one in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": attributes(value)}}
    return {"stringValue": value}


def attributes(said):
    return [{"key": key, "value": any_value(value)} for key, value in said.items()]


def otlp(*spans):
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def span(said, **more):
    times = {"startTimeUnixNano": "1000000000", "endTimeUnixNano": "1250000000"}
    return {"name": "chat", "spanId": "00ff", "attributes": attributes(said)} | times | more


def post(gateway, body, **more):
    return gateway.http.post("/v1/traces", json=body, **more)


@pytest.mark.parametrize("said", [CURRENT, PREVIOUS, INFERENCE], ids=["current", "prev", "openinf"])
def test_the_sdk_exports_each_convention(gateway, tracer, said) -> None:
    with tracer.start_as_current_span("agent", attributes={"http.route": "/"}):
        with tracer.start_as_current_span("chat", attributes=said) as inner:
            span_id = f"{inner.get_span_context().span_id:016x}"
        with tracer.start_as_current_span("SELECT", attributes={"db.system": "sqlite"}):
            pass
    [kept] = on_disk(gateway)
    assert kept.prompt[-1].content == "Hello?" and kept.prompt[-1].role == "user"
    assert (kept.completion.text, kept.model, kept.source) == ("Hi.", "gpt-x", "otlp")
    assert (kept.input_tokens, kept.output_tokens) == (11, 4)
    assert kept.latency_ms is not None and 0 <= kept.latency_ms < 60_000
    assert kept.request_id == said.get("gen_ai.response.id", span_id)
    assert kept.user == said.get("user.id")
    if said is CURRENT:
        assert kept.prompt[0].role == "system" and kept.prompt[0].content == "Be kind"
    if said is not PREVIOUS:
        assert kept.completion.sampling and kept.completion.sampling.max_tokens == 20


def test_events_of_both_conventions(gateway, tracer) -> None:
    base = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x"}
    texts = {k: v for k, v in CURRENT.items() if "messages" in k}
    with tracer.start_as_current_span("chat", attributes=base) as one:
        one.add_event(DETAILS, texts)
    with tracer.start_as_current_span("chat", attributes=base) as one:
        one.add_event("gen_ai.system.message", {"content": "Be kind"})
        one.add_event("gen_ai.user.message", {"gen_ai.event.content": '{"content": "Hello?"}'})
        said = {"index": 0, "finish_reason": "stop", "message": '{"content": "Hi."}'}
        one.add_event("gen_ai.choice", said)
    found = on_disk(gateway)
    assert [(one.prompt[-1].content, one.completion.text) for one in found] == [
        ("Hello?", "Hi.")
    ] * 2
    assert [turn.role for turn in found[1].prompt] == ["system", "user"]


def test_the_sdk_exports_logs_of_the_event_that_stands_for_a_span(gateway) -> None:
    """The current convention's event, beside logs of any other kind; by both transports' forms."""
    provider = LoggerProvider()
    exporter = OTLPLogExporter(f"{gateway.url}/v1/logs", timeout=60)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    logger = provider.get_logger("tests")
    structured = {k: json.loads(v) if "messages" in k else v for k, v in CURRENT.items()}
    broken = {k: v for k, v in CURRENT.items() if "output" not in k} | {"error.type": "timeout"}
    del broken["gen_ai.response.id"]
    for said in (CURRENT, structured, broken):
        logger.emit(LogRecord(timestamp=5, event_name=DETAILS, attributes=said))
    logger.emit(LogRecord(timestamp=6, body="started", attributes=CURRENT))
    logger.emit(LogRecord(timestamp=7, event_name="gen_ai.evaluation.result", attributes=CURRENT))
    provider.shutdown()
    whole, failed = on_disk(gateway)  # the first two say the same
    assert [turn.role for turn in whole.prompt] == ["system", "user"]
    assert (whole.completion.text, whole.request_id, whole.source) == ("Hi.", "chatcmpl-7", "otlp")
    assert (whole.input_tokens, whole.output_tokens, whole.latency_ms) == (11, 4, None)
    assert (failed.error, failed.completion.text) == ("upstream timeout", "")
    assert failed.request_id == "5"  # outside of any span: its time


def test_logs_in_json_and_what_of_them_cannot_be_used(gateway) -> None:
    base = {"spanId": "00ff", "timeUnixNano": "1"}
    good = base | {"eventName": DETAILS, "attributes": attributes(CURRENT)}
    older = base | {"attributes": attributes(CURRENT | {"event.name": DETAILS})}
    bare = base | {
        "eventName": DETAILS,
        "attributes": attributes({"gen_ai.operation.name": "chat"}),
    }
    records = [good, older, bare, base, {"eventName": 7, "attributes": 7}]
    body = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    partial = gateway.http.post("/v1/logs", json=body).json()["partialSuccess"]
    assert partial["rejectedLogRecords"] == 1 and "switch the recording" in partial["errorMessage"]
    assert len(on_disk(gateway)) == 1

    request = logs_service_pb2.ExportLogsServiceRequest()
    one = request.resource_logs.add().scope_logs.add().log_records.add(event_name=DETAILS)
    one.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    kind = {"content-type": "application/x-protobuf"}
    done = gateway.http.post("/v1/logs", content=request.SerializeToString(), headers=kind)
    answer = logs_service_pb2.ExportLogsServiceResponse.FromString(done.content)
    assert done.status_code == 200 and answer.partial_success.rejected_log_records == 1
    assert gateway.http.post("/v1/logs", json={"resourceLogs": 3}).status_code == 400
    assert gateway.http.get("/v1/logs").status_code == 405


def test_tools_and_errors(gateway, tracer) -> None:
    with tracer.start_as_current_span("chat", attributes=TOOLS):
        pass
    asked = {k: v for k, v in CURRENT.items() if "output" not in k} | {"error.type": "timeout"}
    with tracer.start_as_current_span("chat", attributes=asked) as one:
        one.set_status(Status(StatusCode.ERROR, "too slow"))
    tool, broken = on_disk(gateway)
    assert [turn.role for turn in tool.prompt] == ["user", "assistant", "tool"]
    assert json.loads(tool.prompt[1].tool_calls[0].arguments) == {"a": 1}
    assert json.loads(tool.prompt[2].content) == {"rain": True}
    assert tool.prompt[2].tool_call_id == "c" and tool.completion.text == "Rain."
    assert (broken.error, broken.completion.text) == ("upstream timeout", "")


def test_an_agent_does_not_repeat_what_its_chats_said(gateway) -> None:
    agent = CURRENT | {"gen_ai.operation.name": "invoke_agent"}
    assert post(gateway, otlp(span(agent), span(CURRENT))).json() == {}
    assert len(on_disk(gateway)) == 1


def test_json_may_hold_structured_messages_and_is_kept_once(gateway) -> None:
    structured = {k: json.loads(v) if "messages" in k else v for k, v in CURRENT.items()}
    for said in (CURRENT, structured):
        assert post(gateway, otlp(span(said))).status_code == 200
    [kept] = on_disk(gateway)
    assert kept.latency_ms == 250.0


def test_spans_without_their_texts_are_rejected_and_counted(gateway) -> None:
    bare = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-x"}
    image = [{"role": "user", "parts": [{"type": "blob", "content": "00"}]}]
    spoilt = CURRENT | {"gen_ai.input.messages": json.dumps(image)}
    body = otlp(span(bare), span(CURRENT), span({"db.system": "x"}), span(spoilt), span(bare))
    partial = post(gateway, body).json()["partialSuccess"]
    assert partial["rejectedSpans"] == 3
    assert "switch the recording of content on: 2" in partial["errorMessage"]
    assert len(on_disk(gateway)) == 1

    request = trace_service_pb2.ExportTraceServiceRequest()
    one = request.resource_spans.add().scope_spans.add().spans.add()
    one.attributes.add(key="gen_ai.operation.name").value.string_value = "chat"
    kind = {"content-type": "application/x-protobuf"}
    done = gateway.http.post("/v1/traces", content=request.SerializeToString(), headers=kind)
    assert done.status_code == 200 and done.headers["content-type"] == "application/x-protobuf"
    answer = trace_service_pb2.ExportTraceServiceResponse.FromString(done.content)
    assert answer.partial_success.rejected_spans == 1


def test_what_was_erased_is_rejected_and_odd_times_do_no_harm(gateway) -> None:
    from trueup.privacy import erase_user

    assert post(gateway, otlp(span(INFERENCE))).json() == {}
    erase_user(gateway.store, "ann")
    late = span(CURRENT, startTimeUnixNano="1", endTimeUnixNano="9" * 400)
    partial = post(gateway, otlp(span(INFERENCE), late)).json()["partialSuccess"]
    assert (partial["rejectedSpans"], partial["errorMessage"]) == (1, "was erased: 1")
    assert [one.latency_ms for one in on_disk(gateway)] == [None]


def test_a_store_that_cannot_be_written_makes_the_exporter_try_again(gateway) -> None:
    with gateway.store._engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON interaction BEGIN "
            "SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
    assert post(gateway, otlp(span(CURRENT))).status_code == 503
    with gateway.store._engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    assert post(gateway, otlp(span(CURRENT))).json() == {} and len(on_disk(gateway)) == 1


def test_the_exporter_hears_of_success(gateway) -> None:
    exporter = OTLPSpanExporter(f"{gateway.url}/v1/traces", timeout=60)
    provider = TracerProvider()
    with provider.get_tracer("t").start_as_current_span("chat", attributes=CURRENT) as one:
        pass
    assert exporter.export([one]) is SpanExportResult.SUCCESS  # type: ignore[list-item]
    exporter.shutdown()
    assert len(on_disk(gateway)) == 1


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {"content-type": "application/json"}, 400),
        (b"[" * 100_000, {"content-type": "application/json"}, 400),
        (b'{"resourceSpans": 3}', {"content-type": "application/json"}, 400),
        (b"\xff\xff\xff", {"content-type": "application/x-protobuf"}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {"content-type": "application/json", "content-encoding": "br"}, 415),
        (b"{}", {"content-type": "application/json", "content-encoding": "gzip"}, 400),
        (gzip.compress(b"{}" * 99)[:-9],
         {"content-type": "application/json", "content-encoding": "gzip"}, 400),
        (gzip.compress(bytes(100_000_000)),
         {"content-type": "application/json", "content-encoding": "gzip"}, 413),
    ],
)  # fmt: skip
def test_what_is_no_otlp_is_refused(gateway, body, headers, status) -> None:
    done = gateway.http.post("/v1/traces", content=body, headers=headers)
    assert done.status_code == status and done.json()["error"]["message"]


def test_no_span_crashes_it(gateway) -> None:
    """Valid spans with any part replaced by any value: an answer of 200 or 400, always."""
    generator = random.Random(11)
    values = [None, True, -1, 1e400, "", "[]", "{", '{"a": 1}', "\ud800", [], [[]], {}, ["x"]]

    def spoilt(value, depth=0):
        if generator.random() < 0.1:
            return generator.choice(values)
        if isinstance(value, dict):
            return {key: spoilt(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [spoilt(inner, depth + 1) for inner in value]
        if isinstance(value, str) and value[:1] in "[{" and value:
            return json.dumps(spoilt(json.loads(value), depth + 1))
        return value

    event = {"name": "gen_ai.choice", "attributes": attributes({"message": '{"content": "x"}'})}
    kinds = [CURRENT, PREVIOUS, INFERENCE, TOOLS]
    for i in range(200):
        said = spoilt(kinds[i % 4])
        bad = span(said if isinstance(said, dict) else {}, events=[event])
        body = otlp(bad, spoilt(span(kinds[i % 4])) if i % 2 else span(CURRENT))
        done = gateway.http.post("/v1/traces", content=json.dumps(body))
        assert done.status_code == 415  # no content type was named
        kind = {"content-type": "application/json"}
        done = gateway.http.post("/v1/traces", content=json.dumps(body), headers=kind)
        assert done.status_code in (200, 400), done.text
    assert on_disk(gateway)
