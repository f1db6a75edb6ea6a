"""A busy run leaves nothing of prompts, answers, keys, session ids or idempotency keys in the log or the metrics."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from serving import read_answer, serve
from toys import toy_engine, toy_settings

from hope_server.api import create_app
from hope_server.api.key_registry import KeyRegistry, new_key
from hope_server.telemetry import JsonFormatter, configure_logging

pytestmark = pytest.mark.anyio

WORD = "CANARY"
CHAT = "/v1/chat/completions"


@pytest.fixture
def log(monkeypatch) -> Iterator[io.StringIO]:
    """What the whole process logs, at the most talkative level, as `hope serve` writes it."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    written = io.StringIO()
    configure_logging("debug", written)
    # The test's own client runs in the same process.
    for name in ("httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", False)
    yield written
    root.handlers[:], root.level = before


def _turn(**fields):
    return {"messages": [{"role": "user", "content": f"{WORD}prompt"}], "max_tokens": 3, "temperature": 0, **fields}


async def _busy(client: httpx.AsyncClient, key: str) -> set[int]:
    """Ask for everything that goes well and much that does not; return the statuses that came."""
    name, good = f"{WORD}session", {"Authorization": f"Bearer {key}"}
    once = {**good, "Idempotency-Key": f"{WORD}once"}
    asked = [
        ("POST", CHAT, {"json": _turn(session_id=name), "headers": once}),
        ("POST", CHAT, {"json": _turn(session_id=name), "headers": once}),
        ("POST", CHAT, {"json": _turn(session_id=name, max_tokens=2), "headers": once}),
        ("POST", CHAT, {"json": _turn(stream=True, session_id=name), "headers": good}),
        ("POST", CHAT, {"json": _turn(prompt_cache_key=f"{WORD} foreign"), "headers": good}),
        ("POST", CHAT, {"json": _turn(temperature=9), "headers": good}),
        ("POST", CHAT, {"json": _turn(**{f"{WORD}field": 1}), "headers": good}),
        ("POST", CHAT, {"json": _turn(session_id=f"{WORD} not an id"), "headers": good}),
        ("POST", CHAT, {"json": _turn(model=f"{WORD}model"), "headers": good}),
        ("POST", CHAT, {"content": f'{{"messages": {WORD}', "headers": {**good, "Content-Type": "application/json"}}),
        ("POST", CHAT, {"content": f"{WORD}" * 400_000, "headers": {**good, "Content-Type": "application/json"}}),
        ("POST", CHAT, {"json": _turn(), "headers": {"Authorization": f"Bearer hope_{WORD}wrong"}}),
        ("POST", CHAT, {"json": _turn(), "headers": {**good, "X-Request-ID": f"{WORD} no id"}}),
        ("POST", "/v1/sessions", {"json": {"id": name}, "headers": good}),
        ("POST", f"/v1/sessions/{name}/learn", {"json": {"text": f"{WORD}text", "stream": True}, "headers": good}),
        ("POST", f"/v1/sessions/{name}/learn", {"json": {"text": f"{WORD}text", "passes": 10**9}, "headers": good}),
        ("POST", f"/v1/sessions/{name}/score", {"json": {"prompt": WORD, "continuations": [WORD]}, "headers": good}),
        ("POST", f"/v1/sessions/{name}/rollback", {"json": {"version": f"{WORD}version"}, "headers": good}),
        ("GET", f"/v1/sessions/{name}/export", {"headers": good}),
        ("GET", f"/v1/sessions/{name}?q={WORD}query", {"headers": good}),
        ("GET", f"/{WORD}path", {"headers": {**good, "Host": f"{WORD}.example.org"}}),
        ("POST", "/v1/sessions/import", {"content": WORD, "headers": {**good, "Content-Type": WORD}}),
        ("DELETE", f"/v1/sessions/{name}", {"headers": good}),
    ]
    return {(await client.request(method, path, **request)).status_code for method, path, request in asked}


async def test_a_busy_run_writes_no_canary(log, tmp_path, monkeypatch):
    """Good turns, refused ones, faults of ours, noise on the wire: every line is JSON, none has what users sent."""
    registry = KeyRegistry(tmp_path / "keys.jsonl")
    record, key = new_key("laptop", scopes=("chat", "sessions:read", "sessions:write", "admin"))
    registry.add(record)
    settings = toy_settings(tmp_path / "s.db", api_key_file=str(registry.path), request_timeout_seconds=0.5)
    engine = toy_engine(tmp_path / "s.db")
    app = create_app(engine, settings)
    async with serve(app, settings) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        statuses = await _busy(client, key)
        assert {200, 400, 401, 404, 413, 415, 422} <= statuses, statuses
        for noise in (f"{WORD} noise\r\n\r\n", f"GET /{WORD} HTTP/1.1\r\nAuthorization: {WORD}"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise.encode())
            assert await read_answer(reader)
            writer.close()

        def fail(*_args: object) -> None:
            raise ValueError(f"{WORD}fault")

        monkeypatch.setattr(engine, "score", fail)
        monkeypatch.setattr(engine, "chat", fail)
        headers = {"Authorization": f"Bearer {key}"}
        for path, body in ((CHAT, _turn()), ("/v1/sessions/x/score", {"prompt": "a", "continuations": ["b"]})):
            assert (await client.post(path, json=body, headers=headers)).status_code == 500
        metrics = (await client.get("/metrics", headers=headers)).text
        loop = asyncio.get_running_loop()
        loop.default_exception_handler({"message": "unretrieved", "exception": ValueError(f"{WORD}loop")})
    text = log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert len([line for line in lines if line["event"] == "request"]) > 25
    assert [line["error"] for line in lines if line.get("error")].count("ValueError") >= 3
    for secret in (WORD, WORD.lower(), key, key.removeprefix("hope_"), record.hash):
        assert secret not in text
        assert secret not in metrics


def test_asyncios_own_words_are_cut_to_their_first_line():
    """asyncio describes a lost task with its exception, which can quote a prompt, in the lines after the first."""
    message = f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{WORD}')>"
    record = logging.LogRecord("asyncio", logging.ERROR, "x.py", 1, message, (), None)
    assert json.loads(JsonFormatter().format(record))["message"] == "Task exception was never retrieved"
