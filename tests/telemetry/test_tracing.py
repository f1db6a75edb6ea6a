"""Traces: what a request's spans are, where they hang, and that they tell no secrets."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from hope_server.errors import StartupError
from hope_server.telemetry import JsonFormatter, Tracing, open_tracing, request_trace

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Where spans end up."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter: InMemorySpanExporter) -> Tracing:
    """Tracing that keeps its spans in memory."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider)


def turn(text: str = "Mira keeps a violin.", **fields: object) -> dict[str, object]:
    """A body of a chat turn."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 3, "temperature": 0, **fields}


def request_of(spans: Sequence[ReadableSpan]) -> ReadableSpan:
    """The one span that is a request's."""
    (found,) = [span for span in spans if span.name.startswith(("GET ", "POST "))]
    return found


async def test_a_request_has_a_span_and_its_stages_below(serve_toy, tracing, exporter) -> None:
    """Each stage of the turn is a child, in its order, inside the request's time; ids and counts are attributes."""
    async with serve_toy(tracing) as client:
        await client.post(CHAT, json=turn(), headers={"x-session-id": "mira", "x-request-id": "req-7"})
    spans = exporter.get_finished_spans()
    request = request_of(spans)
    children = [span for span in spans if span is not request]

    assert request.name == f"POST {CHAT}"
    assert [span.name for span in children] == ["gate", "queue", "prefill", "decode", "learn", "commit"]
    assert {span.parent.span_id for span in children} == {request.context.span_id}
    assert all(request.start_time <= span.start_time <= span.end_time <= request.end_time for span in children)
    assert all(span.attributes["hope.busy_seconds"] >= 0.0 for span in children)
    expected = {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "hope.request_id": "req-7",
        "hope.operation": "chat",
        "hope.outcome": "length",
        "hope.completion_tokens": 3,
        "hope.restored_from": "new",
    }
    assert {name: request.attributes.get(name) for name in expected} == expected


async def test_a_caller_goes_on_with_its_own_trace(serve_toy, tracing, exporter) -> None:
    """The request's span hangs below the one that `traceparent` names; a `traceparent` that is none begins anew."""
    async with serve_toy(tracing) as client:
        await client.get("/v1/models", headers={"traceparent": PARENT})
        await client.get("/v1/models", headers={"traceparent": "00-what"})
    called, alone = exporter.get_finished_spans()

    assert (called.context.trace_id, called.parent.span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert alone.parent is None


async def test_a_refused_request_is_an_error_with_its_code(serve_toy, tracing, exporter) -> None:
    """A turn that fails marks the request's span with the error's code; the client's own mistakes do not."""
    async with serve_toy(tracing, max_prompt_tokens=64) as client:
        await client.post(CHAT, json=turn("x" * 500))
        await client.post(CHAT, json=turn(temperature=9))
    failed, mistaken = exporter.get_finished_spans()

    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "prompt_too_long")
    assert mistaken.status.status_code == StatusCode.UNSET
    assert mistaken.attributes["http.response.status_code"] == 400


async def test_a_commit_behind_the_answer_is_in_its_trace(serve_toy, tracing, exporter) -> None:
    """With durability async the store is written when the request's span may be over; the child is there still."""
    async with serve_toy(tracing) as client:
        await client.post(CHAT, json=turn(memory={"durability": "async"}), headers={"x-session-id": "mira"})
    spans = exporter.get_finished_spans()
    (commit,) = [span for span in spans if span.name == "commit"]

    assert commit.parent.span_id == request_of(spans).context.span_id


async def test_spans_tell_no_secrets(serve_toy, tracing, exporter) -> None:
    """No span has a word of the prompt, the reply, the key, the session's name, a path or a method typed by hand."""
    secret = "CANARY"
    headers = {"x-session-id": f"{secret}session", "authorization": f"Bearer {secret}key"}
    async with serve_toy(tracing, api_keys=(f"{secret}key",)) as client:
        answer = await client.post(CHAT, json=turn(secret * 3), headers=headers)
        reply = answer.json()["choices"][0]["message"]["content"]
        await client.get(f"/v1/sessions/{secret}session?{secret}=1", headers=headers)
        await client.request(f"{secret}METHOD", f"/{secret}", headers=headers)
    told = "".join(json.dumps(json.loads(span.to_json())) for span in exporter.get_finished_spans())

    assert answer.status_code == 200
    assert secret not in told
    assert json.dumps(reply)[1:-1] not in told


async def test_health_and_metrics_are_not_traced(serve_toy, tracing, exporter) -> None:
    """What asks every second whether the server lives makes no spans."""
    async with serve_toy(tracing) as client:
        for path in ("/health", "/ready", "/metrics"):
            await client.get(path)

    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {ENDPOINT: ""},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {ENDPOINT: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_without_a_collector_nothing_is_traced(environ: dict[str, str]) -> None:
    """Traces begin only where the standard variables name a collector and do not turn them off."""
    assert open_tracing(environ) is None


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for traces without the extra is told which extra that is."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartupError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set.*hope-server\[otel\]"):
        open_tracing({ENDPOINT: "http://127.0.0.1:1"})


def test_another_protocol_is_refused() -> None:
    """A protocol that the packages do not speak stops the start and says which one they do."""
    with pytest.raises(StartupError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'.*http/protobuf"):
        open_tracing({ENDPOINT: "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_a_collector_that_is_gone_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans that nobody takes are given up after two seconds."""
    # Port 9 discards, or more likely has no listener at all.
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:9")
    tracing = open_tracing({ENDPOINT: "http://127.0.0.1:9"})
    assert tracing is not None
    tracing.begin("GET", {}, "req_1").end("/v1/models", 200)
    began = time.monotonic()
    tracing.close()

    assert time.monotonic() - began < 4.0


def test_log_lines_name_their_trace(tracing) -> None:
    """A line that is written while a traced request is served carries the trace's id; any other carries none."""
    record = logging.LogRecord("hope", logging.INFO, "", 0, "", (), None)
    trace = tracing.begin("GET", {"traceparent": PARENT}, "req_1")
    token = request_trace.set(trace)
    told = json.loads(JsonFormatter().format(record))
    request_trace.reset(token)

    assert told["trace_id"] == "ab" * 16
    assert "trace_id" not in json.loads(JsonFormatter().format(record))
