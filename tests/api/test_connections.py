"""Slow and many connections over real sockets: deadlines, bounds, and what happens to the turns behind them."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import httpx
import pytest
from serving import read_answer, serve

from hope_server.api import create_app, sse
from hope_server.engine.turn import TokenText
from hope_server.settings import Settings

pytestmark = pytest.mark.anyio

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


def _error(answer: bytes) -> dict[str, str]:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def _status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", GET[:-2]], ids=["nothing", "letter", "lines", "most"]
)
async def test_half_a_request_is_closed(engine, sent):
    """A connection that does not finish its request's head is closed in time, told why if it had begun."""
    settings = Settings(request_timeout_seconds=0.4)
    async with serve(create_app(engine, settings), settings) as port:
        reader, writer = await _open(port)
        writer.write(sent)
        started = time.monotonic()
        answer = await read_answer(reader)
        assert 0.3 < time.monotonic() - started < 1.5
        writer.close()
    if sent:
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert _error(answer)["code"] == "request_timeout"
    else:
        assert answer == b""


async def test_bytes_now_and_then_do_not_help(engine):
    """The head as a whole has a deadline; a letter now and then does not move it, nor after an answer."""
    settings = Settings(request_timeout_seconds=0.4, keep_alive_seconds=30)
    async with serve(create_app(engine, settings), settings) as port:
        for first in (b"", GET):
            reader, writer = await _open(port)
            writer.write(first)
            if first:
                assert b"200 OK" in await reader.readuntil(b"}]}")
            started = time.monotonic()
            try:
                for letter in b"GET /v1/models HTTP/1.1 and on and on":
                    writer.write(bytes([letter]))
                    await writer.drain()
                    if reader.at_eof():
                        break
                    await asyncio.sleep(0.1)
            except ConnectionError:
                pass
            assert time.monotonic() - started < 2.0
            writer.close()


async def test_an_idle_connection_is_kept_for_the_next_request_and_then_closed(engine):
    """Between requests a connection may rest for the time that is set, and no longer."""
    settings = Settings(keep_alive_seconds=0.6, request_timeout_seconds=0.2)
    async with serve(create_app(engine, settings), settings) as port:
        reader, writer = await _open(port)
        for _ in range(2):
            writer.write(GET)
            assert b"200 OK" in await reader.readuntil(b"}]}")
            await asyncio.sleep(0.4)
        started = time.monotonic()
        assert await read_answer(reader) == b""
        assert time.monotonic() - started < 1.0
        writer.close()


async def test_the_rest_of_a_body_that_nobody_wants_is_not_waited_for(engine):
    """A client that goes on sending its body after it was answered is closed too."""
    settings = Settings(request_timeout_seconds=0.4, keep_alive_seconds=30)
    async with serve(create_app(engine, settings), settings) as port:
        reader, writer = await _open(port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"}]}")
        started = time.monotonic()
        try:
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.1)
        except ConnectionError:
            pass
        assert time.monotonic() - started < 2.0
        writer.close()


async def test_a_slow_body_over_a_socket(engine):
    """A byte now and then is answered 408 and closed."""
    settings = Settings(request_timeout_seconds=0.4)
    async with serve(create_app(engine, settings), settings) as port:
        reader, writer = await _open(port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(head + b"Content-Length: 1000\r\n\r\n")

        async def trickle() -> None:
            while True:
                writer.write(b" ")
                await asyncio.sleep(0.1)

        trickling = asyncio.create_task(trickle())
        answer = await read_answer(reader)
        trickling.cancel()
        writer.close()
        assert (_status(answer), _error(answer)["code"]) == (408, "request_timeout")


async def test_what_is_no_http_is_answered_in_the_same_shape(engine):
    """Noise, and a head that is too long, get 400 in OpenAI's shape, and the connection ends."""
    settings = Settings()
    async with serve(create_app(engine, settings), settings) as port:
        for noise in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 100_000):
            reader, writer = await _open(port)
            writer.write(noise)
            answer = await read_answer(reader)
            writer.close()
            assert (_status(answer), _error(answer)["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("size", [7, 1000, 10**6])
async def test_a_head_of_many_lines_is_refused_before_it_is_parsed(engine, size):
    """However it is cut, a head of more lines than a request may have answers 431; a body may have any number."""
    settings = Settings()
    async with serve(create_app(engine, settings), settings) as port:
        heads = {
            200: GET[:-2] + b"".join(b"x-%d: 1\r\n" % number for number in range(90)) + b"\r\n",
            431: GET[:-2] + b"".join(b"x-%d: 1\r\n" % number for number in range(150)) + b"\r\n",
            400: b"POST /v1/sessions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n" + b"\n" * 999 + b"x",
        }
        for status, sent in heads.items():
            reader, writer = await _open(port)
            answering = asyncio.create_task(reader.readline())
            for start in range(0, len(sent), size):
                if answering.done():
                    break
                writer.write(sent[start : start + size])
                await asyncio.sleep(0)
            assert _status(await answering) == status
            writer.close()


async def test_connections_are_bounded(engine):
    """One too many is turned away with 429, of one address or of all; when one has gone there is room again."""
    for fields in ({"max_connections": 3}, {"max_connections_per_address": 3}):
        settings = Settings(**fields)
        async with serve(create_app(engine, settings), settings) as port:
            held = [await _open(port) for _ in range(3)]
            await asyncio.sleep(0.05)
            reader, writer = await _open(port)
            answer = await read_answer(reader)
            writer.close()
            assert (_status(answer), _error(answer)["code"]) == (429, "overloaded")
            assert b"Retry-After: 1" in answer
            held.pop()[1].close()
            await asyncio.sleep(0.05)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                assert (await client.get("/health")).status_code == 200
            for _, each in held:
                each.close()


def _connect_unread(port: int) -> socket.socket:
    """A connection whose buffers are as small as they go, so that little is in flight when nobody reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    return client


def _ask(client: socket.socket, body: dict) -> None:
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
    client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)


async def test_a_stream_that_begins_late_says_so_meanwhile(engine, tools, monkeypatch):
    """Through all layers: pings until the first text, however long it takes, and headers that stop proxies' buffers."""
    monkeypatch.setattr(sse, "PING_SECONDS", 0.1)
    settings = Settings(request_timeout_seconds=0.2, write_timeout_seconds=0.2, keep_alive_seconds=0.2)
    gate = asyncio.Event()
    engine.script = [gate, TokenText("late"), tools.FINISHED]
    async with serve(create_app(engine, settings), settings) as port:
        reader, writer = await _open(port)
        content = json.dumps(tools.chat_body(stream=True)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        headers = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)).lower()
        for expected in (b" 200 ok", b"content-type: text/event-stream", b"x-accel-buffering: no", b"no-cache"):
            assert expected in headers
        for _ in range(6):
            await asyncio.wait_for(reader.readuntil(b": ping\n\n"), 1)
        gate.set()
        rest = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 2)
        assert b'"content":"late"' in rest
        writer.close()


async def test_a_client_that_does_not_read_is_dropped(engine, tools):
    """A turn that still computes is ended when its reader is given up; nothing is kept waiting for it."""
    settings = Settings(write_timeout_seconds=0.6)
    engine.script = [*[TokenText("x" * 20_000)] * 400, asyncio.Event()]
    app = create_app(engine, settings)
    async with serve(app, settings) as port:
        client = _connect_unread(port)
        _ask(client, tools.chat_body(stream=True))
        await tools.eventually(lambda: engine.num_open == 1)
        started = time.monotonic()
        await tools.eventually(lambda: engine.num_open == 0)
        assert time.monotonic() - started < 3.0
        client.close()


async def test_a_finished_turn_is_not_undone_by_its_reader(engine, tools):
    """A turn that has ended is as it is; the unread rest of its answer is dropped with the connection."""
    settings = Settings(write_timeout_seconds=0.4)
    engine.script = [*[TokenText("x" * 20_000)] * 400, tools.FINISHED]
    app = create_app(engine, settings)
    async with serve(app, settings) as port:
        client = _connect_unread(port)
        _ask(client, tools.chat_body(stream=True, session_id="s1"))
        outcome = 'hope_turns_total{outcome="stop"} 1.0'
        await tools.eventually(lambda: outcome in app.state.services.metrics.render().decode())
        await asyncio.sleep(1.2)
        client.settimeout(1.0)
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
        # Cut off, so that no client takes what it got for the whole.
        assert 0 < len(received) < 8_000_000
        assert b"[DONE]" not in received and not received.endswith(b"0\r\n\r\n")
        assert engine.acknowledged == []
        client.close()


async def test_a_reader_that_is_slow_but_reads_gets_everything(engine, tools):
    """Being slow is no fault: what is read steadily comes whole, however long it takes."""
    settings = Settings(write_timeout_seconds=0.5)
    engine.script = [*[TokenText("x" * 20_000)] * 20, tools.FINISHED]
    app = create_app(engine, settings)
    async with serve(app, settings) as port:
        client = _connect_unread(port)
        _ask(client, tools.chat_body(stream=True))
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        started, received = time.monotonic(), b""
        while b"[DONE]" not in received[-200:]:
            piece = await loop.sock_recv(client, 65536)
            assert piece
            received += piece
            await asyncio.sleep(0.01)
        assert received.count(b"xxxx") > 0
        assert time.monotonic() - started > 0.5
        client.close()
