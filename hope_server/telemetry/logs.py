"""Logs as JSON lines; they never carry a prompt, an output or a weight."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from hope_server.telemetry.tracing import request_trace

__all__ = ["JsonFormatter", "Scalar", "configure_logging", "log_event", "log_failure", "request_id"]

request_id: ContextVar[str | None] = ContextVar("hope_request_id", default=None)
"""Id of the HTTP request that the current task serves; every log line carries it."""

_MAX_TEXT = 300

Scalar = str | int | float | bool | None


class JsonFormatter(logging.Formatter):
    """Write one JSON object per record: time (UTC), level, logger, event, request_id, trace_id and its own keys.

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
        if (trace := request_trace.get()) is not None:
            entry["trace_id"] = trace.trace_id
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
