"""OpenTelemetry traces: a span for each request, and below it one for each stage of its turns.

Needs the extra `otel`; without the standard variables that name a collector nothing of it is imported. Spans carry
times, counts, codes and the request's id, never text and no session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from hope_server.errors import StartupError
from hope_server.telemetry.ledger import Stage, StageTime

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

__all__ = ["RequestTrace", "Tracing", "open_tracing", "request_trace"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FLUSH_SECONDS = 2.0

Attribute = str | int | float | bool


def open_tracing(environ: Mapping[str, str]) -> Tracing | None:
    """Return what the standard OTEL_ variables ask for; None where they name no collector.

    `environ` decides whether and by which protocol; all else the SDK reads from the process's own environment.
    Raises StartupError where the packages are missing, or the protocol is none that they speak.
    """
    is_off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    asked = next((name for name in _ENDPOINTS if environ.get(name)), None)
    if asked is None or is_off:
        return None
    for name in _PROTOCOLS:
        if environ.get(name, _PROTOCOL) not in ("", _PROTOCOL):
            raise StartupError(f"{name} is {environ[name]!r}; this server exports traces by {_PROTOCOL} only")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise StartupError(
            f"{asked} is set, but the packages that export traces are not installed; "
            "run `pip install 'hope-server[otel]'`, or unset the variable"
        ) from exc
    named = Resource.create({"service.name": "hope-server"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Starts a trace for each request, in a provider of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("hope_server")

    def begin(self, method: str, headers: Mapping[str, str], request_id: str | None) -> RequestTrace:
        """Start the span of a request, below the one that its W3C `traceparent` names, if it has one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        # Without a parent in it the context is empty, and the span begins a trace.
        parent = TraceContextTextMapPropagator().extract(given)
        # Methods are anything that a stranger types.
        verb = method if method in _METHODS else "_OTHER"
        span = self._tracer.start_span(verb, parent, SpanKind.SERVER, {"http.request.method": verb})
        if request_id is not None:
            span.set_attribute("hope.request_id", request_id)
        return RequestTrace(self._tracer, span, verb)

    def close(self) -> None:
        """Send what is waiting; blocks, for two seconds at most."""
        # The SDK would go on for as long as a collector that is gone lets it.
        ending = threading.Thread(target=self._provider.shutdown, name="hope-traces-end", daemon=True)
        ending.start()
        ending.join(_FLUSH_SECONDS)


class RequestTrace:
    """The span of one request. Any thread may add to it, also when it has ended."""

    def __init__(self, tracer: Tracer, span: Span, method: str) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        # Stages are measured by a clock that never jumps; this is where it stands in the world's time.
        self._epoch = time.time_ns() - time.perf_counter_ns()

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hexadecimal digits."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        """Add to what the request's span says. Never pass text that a user or the model wrote, or a session's id."""
        if self._span.is_recording():
            self._span.set_attributes(dict(attributes))

    def fail(self, code: str) -> None:
        """Mark the request as failed with an error's code."""
        from opentelemetry.trace import StatusCode

        if self._span.is_recording():
            self._span.set_attribute("error.type", code)
            self._span.set_status(StatusCode.ERROR, code)

    def add_stage(self, stage: Stage, found: StageTime) -> None:
        """Add a child span from a stage's first beginning to its last end; `hope.busy_seconds` is the time in it."""
        from opentelemetry.trace import set_span_in_context

        attributes: dict[str, Attribute] = {"hope.busy_seconds": found.seconds}
        if found.num_bytes:
            attributes["hope.bytes"] = found.num_bytes
        below = set_span_in_context(self._span)
        span = self._tracer.start_span(stage, below, attributes=attributes, start_time=self._at(found.began))
        span.end(self._at(found.ended))

    def end(self, route: str, status: int) -> None:
        """End the request's span: `route` is its template, `status` that of HTTP."""
        if not self._span.is_recording():
            return
        self._span.update_name(f"{self._method} {route}")
        self.note({"http.route": route, "http.response.status_code": status})
        if status >= 500:
            self.fail(str(status))
        self._span.end()

    def _at(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)


request_trace: ContextVar[RequestTrace | None] = ContextVar("hope_request_trace", default=None)
"""The trace of the request that the current task serves; None where nobody traces."""
