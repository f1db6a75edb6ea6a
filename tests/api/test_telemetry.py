"""Log lines: JSON, with the request's id, and never with what a user or the model wrote."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

from hope_server.engine.turn import TokenText
from hope_server.telemetry import Metrics, configure_logging, log_event, log_failure, request_id


@pytest.fixture
def lines():
    """Configure logging into a buffer, give back a reader of its lines, and restore logging afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    configure_logging("debug", stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = handlers
    root.setLevel(level)


def test_event_is_one_json_line(lines):
    """An event carries its name, its keys, its time in UTC and the id of the request it belongs to."""
    token = request_id.set("req_1")
    log_event("turn", {"seconds": 0.5, "outcome": "stop"})
    request_id.reset(token)
    (line,) = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "hope",
        "event": "turn",
        "request_id": "req_1",
        "seconds": 0.5,
        "outcome": "stop",
    }


def test_failure_is_logged_without_its_message(lines):
    """Of an exception the log keeps type and places, not the text, which can quote a prompt."""
    try:
        raise ValueError("the prompt was SECRET")
    except ValueError as exc:
        log_failure("turn_failed", exc)
    (line,) = lines()
    assert (line["event"], line["level"], line["error"]) == ("turn_failed", "error", "ValueError")
    assert "test_telemetry.py" in line["stack"][0]
    assert "SECRET" not in json.dumps(line)


def test_lines_of_other_libraries(lines):
    """Other libraries' lines come as JSON too, uvicorn's access log is silent, and debug of a level is obeyed."""
    logging.getLogger("uvicorn.error").warning("port %d in use", 80)
    logging.getLogger("uvicorn.access").info("GET /v1/x?secret=1")
    (line,) = lines()
    assert (line["event"], line["message"], line["logger"]) == ("message", "port 80 in use", "uvicorn.error")


def test_meter_counts_a_turn_once():
    """However often a turn's end is reported, the first report counts."""
    metrics = Metrics(dict)
    meter = metrics.turn("chat")
    meter.first_text()
    meter.first_text()
    meter.end("stop")
    meter.end("cancelled")
    text = metrics.render().decode()
    assert 'hope_turns_total{outcome="stop"} 1.0' in text
    assert "cancelled" not in text
    assert "hope_turn_ttft_seconds_count 1.0" in text


@pytest.mark.anyio
async def test_no_prompt_and_no_output_in_the_log(lines, serving, engine, tools):
    """Whatever happens to a request, nothing of its text, its path's ids or its key reaches the log."""
    engine.script = [TokenText("OUTPUT-SECRET"), ValueError("OUTPUT-SECRET")]
    headers = {"Authorization": "Bearer KEY-SECRET"}
    async with serving(api_keys=("KEY-SECRET",)) as (_, client):
        for fields in ({}, {"stream": True}, {"temperature": 9}, {"PROMPT-SECRET": 1}):
            body = tools.chat_body(messages=[{"role": "user", "content": "PROMPT-SECRET"}], **fields)
            await client.post("/v1/chat/completions", json=body, headers=headers)
        await client.get("/v1/sessions/PATH-SECRET?q=QUERY-SECRET", headers=headers)
        await client.get("/PATH-SECRET", headers=headers)
    await asyncio.sleep(0)
    written = [line for line in lines() if line["logger"] == "hope"]
    assert "SECRET" not in json.dumps(written)
    requests = [line for line in written if line["event"] == "request"]
    assert [line["route"] for line in requests] == ["/v1/chat/completions"] * 4 + [
        "/v1/sessions/{session_id}",
        "unmatched",
    ]
    assert [line["status"] for line in requests] == [500, 200, 400, 400, 404, 404]
    assert all(line["request_id"].startswith("req_") for line in requests)
    turns = [line for line in written if line["event"] == "turn"]
    assert [line["outcome"] for line in turns] == ["internal_error", "internal_error"]
    assert {line["request_id"] for line in turns} == {line["request_id"] for line in requests[:2]}
