"""Every request is counted, by the route's template and the status that the client got."""

from __future__ import annotations

import asyncio
import re

import pytest

pytestmark = pytest.mark.anyio


async def _counted(client, headers=None) -> dict[tuple[str, str], float]:
    text = (await client.get("/metrics", headers=headers)).text
    found = re.findall(r'^hope_http_requests_total\{route="([^"]*)",status="(\d+)"\} (\S+)$', text, re.MULTILINE)
    return {(route, status): float(count) for route, status, count in found}


async def test_requests_are_counted_by_route_and_status(serving, engine, tools):
    """Refusals count too, also those before any route is found; a path's ids are not in the labels."""
    headers = {"Authorization": "Bearer good"}
    async with serving(api_keys=("good",)) as (_, client):
        await client.post("/v1/chat/completions", json=tools.chat_body(), headers=headers)
        await client.post("/v1/chat/completions", json=tools.chat_body(temperature=9), headers=headers)
        await client.get("/v1/sessions/one", headers=headers)
        await client.get("/v1/sessions/two", headers=headers)
        await client.get("/v1/sessions/two")
        await client.get("/elsewhere", headers=headers)
        counted = await _counted(client, headers)

    assert counted == {
        ("/v1/chat/completions", "200"): 1.0,
        ("/v1/chat/completions", "400"): 1.0,
        ("/v1/sessions/{session_id}", "404"): 2.0,
        ("unmatched", "401"): 1.0,
        ("unmatched", "404"): 1.0,
    }


async def test_a_fault_counts_as_500(serving, engine, tools, monkeypatch):
    """An exception that no route catches is answered with 500 further out, and counted so."""

    def fail() -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(engine, "list_sessions", lambda *args, **words: fail())
    async with serving() as (_, client):
        answer = await client.get("/v1/sessions")
        counted = await _counted(client)

    assert answer.status_code == 500
    assert counted[("/v1/sessions", "500")] == 1.0


async def test_a_client_that_left_counts_as_499(serving, engine, tools):
    """A turn whose client hangs up before the answer is no fault of the server."""
    engine.script = [asyncio.Event()]
    async with serving() as (app, client):
        body = b'{"messages": [{"role": "user", "content": "hi"}]}'
        call = tools.RawCall(app, "/v1/chat/completions", body)
        await tools.eventually(lambda: engine.num_open == 1)
        call.hang_up()
        await call.task
        counted = await _counted(client)

    assert counted[("/v1/chat/completions", "499")] == 1.0


async def test_what_the_servers_end_cuts_off_counts_as_503(serving, engine, tools):
    """A request that is cancelled before its answer began is told to come again, and counted so."""
    engine.script = [asyncio.Event()]
    async with serving() as (app, client):
        call = tools.RawCall(app, "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "hi"}]}')
        await tools.eventually(lambda: engine.num_open == 1)
        call.task.cancel()
        await asyncio.gather(call.task, return_exceptions=True)
        counted = await _counted(client)

    assert counted[("/v1/chat/completions", "503")] == 1.0
