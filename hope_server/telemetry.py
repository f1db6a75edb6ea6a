"""Logs as JSON lines and Prometheus metrics, in one place; neither ever carries a prompt, an output or a weight."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Protocol, TextIO

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

__all__ = [
    "JsonFormatter",
    "Metrics",
    "TokenAccount",
    "TurnMeter",
    "configure_logging",
    "log_event",
    "log_failure",
    "request_id",
    "token_account",
]

request_id: ContextVar[str | None] = ContextVar("hope_request_id", default=None)
"""Id of the HTTP request that the current task serves; every log line carries it."""


class TokenAccount(Protocol):
    """What a request's tokens are charged to."""

    def begin(self) -> None:
        """Note that computing begins; what it will take can only be guessed yet."""

    def settle(self, num_tokens: int) -> None:
        """Put what it took in the place of the guess."""

    def abandon(self, num_tokens: int) -> None:
        """Note that the client left after `num_tokens` tokens of answer; what was read for it stays a guess."""


token_account: ContextVar[TokenAccount | None] = ContextVar("hope_token_account", default=None)
"""Where the current request's tokens are charged; None where nobody counts."""

_MAX_TEXT = 300
_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TURN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)

Scalar = str | int | float | bool | None


class JsonFormatter(logging.Formatter):
    """Write one JSON object per record: time (UTC), level, logger, event, request_id and the event's own keys.

    Of an exception only its type and the places it passed are written: its message can quote user text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": getattr(record, "hope_event", "message"),
        }
        if entry["event"] == "message":
            # The first line only: asyncio's others quote tasks with their exceptions, and those what users wrote.
            entry["message"] = record.getMessage().partition("\n")[0][:_MAX_TEXT]
        if (current := request_id.get()) is not None:
            entry["request_id"] = current
        for key, value in getattr(record, "hope_fields", {}).items():
            entry[key] = value[:_MAX_TEXT] if isinstance(value, str) else value
        if record.exc_info and record.exc_info[1] is not None:
            entry["error"] = type(record.exc_info[1]).__name__
            entry["stack"] = _places(record.exc_info[1])
        return json.dumps(entry, default=lambda value: type(value).__name__)


def _places(error: BaseException) -> list[str]:
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]


def configure_logging(level: str, stream: TextIO | None = None) -> None:
    """Send every log line of the process to `stream` (stderr when None) as JSON, from `level` upwards.

    Start uvicorn with `log_config=None` so that its lines come this way too. Its access log is silenced: the
    service writes its own, without query strings.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"


def log_event(event: str, fields: Mapping[str, Scalar] | None = None, level: int = logging.INFO) -> None:
    """Log `event` with its keys. Never pass text that a user or the model wrote."""
    logging.getLogger("hope").log(level, event, extra={"hope_event": event, "hope_fields": dict(fields or {})})


def log_failure(event: str, error: BaseException) -> None:
    """Log an unexpected exception as `event`, by type and places only."""
    logging.getLogger("hope").error(
        event, exc_info=(type(error), error, error.__traceback__), extra={"hope_event": event, "hope_fields": {}}
    )


class _StatsCollector(Collector):
    """Reads the engine's gauges when Prometheus asks, so that nothing has to push them."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self._stats = stats

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, value in sorted(self._stats().items()):
            yield GaugeMetricFamily(f"hope_{name}", f"The engine's {name.replace('_', ' ')}.", value=value)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        """`stats` returns the engine's gauges by name; each is published as hope_<name>."""
        self.registry = CollectorRegistry()
        self.turns = Counter("hope_turns", "Turns by how they ended.", ["outcome"], registry=self.registry)
        self.ttft_seconds = Histogram(
            "hope_turn_ttft_seconds",
            "Seconds from a turn's start to its first text.",
            buckets=_TTFT_BUCKETS,
            registry=self.registry,
        )
        self.turn_seconds = Histogram(
            "hope_turn_seconds",
            "Seconds from a turn's start to its end.",
            buckets=_TURN_BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter("hope_tokens", "Tokens by kind.", ["kind"], registry=self.registry)
        for kind in ("prompt", "completion", "learned"):
            self.tokens.labels(kind)
        self.registry.register(_StatsCollector(stats))

    def turn(self, operation: str) -> TurnMeter:
        """Start the clock of one turn; `operation` (chat, learn, consolidate) goes into its log line."""
        return TurnMeter(self, operation)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class TurnMeter:
    """Measures one turn and counts its end once, whoever reports it first."""

    def __init__(self, metrics: Metrics, operation: str) -> None:
        self._metrics = metrics
        self._operation = operation
        self._started = time.perf_counter()
        self._ttft_seconds: float | None = None
        self._is_over = False
        self._num_pieces = 0
        self._num_tokens = 0
        self._account = token_account.get()
        if self._account is not None:
            self._account.begin()

    def first_text(self) -> None:
        """Note that text reached the API; the time counts from the first call."""
        self._num_pieces += 1
        if self._ttft_seconds is None:
            self._ttft_seconds = time.perf_counter() - self._started
            self._metrics.ttft_seconds.observe(self._ttft_seconds)

    def add_tokens(self, prompt: int, completion: int, learned: int) -> None:
        """Count the turn's tokens."""
        self._num_tokens += prompt + completion + learned
        self._metrics.tokens.labels("prompt").inc(prompt)
        self._metrics.tokens.labels("completion").inc(completion)
        self._metrics.tokens.labels("learned").inc(learned)

    def end(self, outcome: str) -> None:
        """Close the turn: `outcome` is a finish reason, an error's code, `replayed` or `cancelled`."""
        if self._is_over:
            return
        self._is_over = True
        if self._account is not None and outcome == "cancelled":
            self._account.abandon(self._num_pieces)
        elif self._account is not None:
            self._account.settle(self._num_tokens)
        seconds = time.perf_counter() - self._started
        self._metrics.turns.labels(outcome).inc()
        self._metrics.turn_seconds.observe(seconds)
        fields: dict[str, Scalar] = {"operation": self._operation, "outcome": outcome, "seconds": round(seconds, 4)}
        if self._ttft_seconds is not None:
            fields["ttft_seconds"] = round(self._ttft_seconds, 4)
        log_event("turn", fields)
