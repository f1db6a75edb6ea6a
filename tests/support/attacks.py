"""Ways to wear a server down over real sockets, and a watch, in a process of its own, on how /health answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CHAT = "/v1/chat/completions"
KEY = "hope_of_the_attacker"
_WATCH = """
import http.client, json, sys, time
port, seconds = int(sys.argv[1]), float(sys.argv[2])
taken, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/health")
    assert connection.getresponse().read() == b'{"status":"ok"}'
    connection.close()
    taken.append(time.perf_counter() - started)
    time.sleep(0.01)
print(json.dumps(sorted(taken)))
"""


@dataclass(frozen=True)
class Server:
    """A toy server in a process of its own."""

    port: int
    process: subprocess.Popen[str]

    def rss_bytes(self) -> int:
        """How much memory it has in use."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def num_sockets(self) -> int:
        """How many sockets it has open."""
        found = 0
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):
                found += os.readlink(entry).startswith("socket:")
        return found


@contextmanager
def toy_server(folder: Path, root: Path, *flags: str) -> Iterator[Server]:
    """Run `hope serve` with a toy model and one key, its limits at their defaults but for `flags`."""
    command = [sys.executable, "-m", "tests.chaos.server", "--port=0", f"--store={folder / 's.db'}"]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "OMP_NUM_THREADS": "1"}
    command += [f"--api-keys={KEY}", *flags]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=environ, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            banner = process.stdout.readline()
            assert "is ready at" in banner, (folder / "server.log").read_text()[-2000:]
            yield Server(int(banner.rpartition(":")[2]), process)
            assert process.poll() is None, "the server died"
        finally:
            process.terminate()
            process.wait(20)
            if process.stdout is not None:
                process.stdout.close()


@dataclass(frozen=True)
class Health:
    """How long /health took, in seconds."""

    num_asked: int
    p50: float
    p99: float
    worst: float


async def watch_health(port: int, seconds: float) -> Health:
    """Ask for /health over and over from another process, so that the attack's own work does not count."""
    watch = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WATCH, str(port), str(seconds), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await watch.communicate()
    assert watch.returncode == 0
    taken = json.loads(output)
    return Health(len(taken), taken[len(taken) // 2], taken[min(len(taken) - 1, int(len(taken) * 0.99))], taken[-1])


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One connection; that the server ends it is no fault here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()


def post(path: str, body: bytes, key: str = KEY) -> bytes:
    """A whole POST of JSON, which asks to be closed after."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        f"Authorization: Bearer {key}",
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def flood(port: int, requests: Iterator[bytes], width: int, until: float) -> list[int]:
    """Send requests as fast as `width` connections at once allow; return the statuses that came back."""
    statuses: list[int] = []

    async def one_lane() -> None:
        while time.monotonic() < until:
            with suppress(ConnectionError, TimeoutError, IndexError, ValueError):
                async with connected(port) as (reader, writer), asyncio.timeout(30):
                    writer.write(next(requests))
                    await writer.drain()
                    answer = await reader.read()
                    statuses.append(int(answer.split(b" ", 2)[1]))

    await asyncio.gather(*(one_lane() for _ in range(width)))
    return statuses


async def hold(port: int, first: bytes, then: bytes, count: int, until: float) -> int:
    """Open `count` connections that send `first` and then `then` each half second; return how many the server ended."""

    async def one() -> bool:
        try:
            async with connected(port) as (reader, writer):
                writer.write(first)
                while time.monotonic() < until:
                    writer.write(then)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await reader.read(65536)
                    if reader.at_eof():
                        return True
        except ConnectionError:
            return True
        return False

    return sum(await asyncio.gather(*(one() for _ in range(count))))


async def never_read(port: int, request: bytes, count: int, until: float) -> None:
    """Ask for `count` streams and read nothing of them."""
    async with asyncio.TaskGroup() as group:

        async def one() -> None:
            with suppress(ConnectionError):
                async with connected(port) as (reader, writer):
                    writer.transport.pause_reading()
                    writer.write(request)
                    await asyncio.sleep(max(0.0, until - time.monotonic()))
                    assert reader is not None

        for _ in range(count):
            group.create_task(one())


def chat(text: str = "hi", **fields: object) -> bytes:
    """The body of a chat request."""
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}).encode()


_DEEP = post(CHAT, b'{"messages": ' + b"[" * 500_000)
_WIDE = post(CHAT, b'{"messages": [' + b"{}," * 600_000 + b"{}]}")
_STRINGS = post(CHAT, b'{"messages": [' + b'"",' * 600_000 + b'""]}')
_ESCAPES = post(CHAT, chat("\u00e9\\\n" * 200_000))
_LARGE = post("/v1/sessions/a/learn", b'{"text": "' + b"a" * 20_000_000 + b'"}')
_MESSAGES = post(CHAT, json.dumps({"messages": [{"role": "user", "content": "x"}] * 2048, "temperature": 9}).encode())
_REASONING = post(
    CHAT,
    json.dumps(
        {"session_id": "r", "messages": [{"role": "assistant", "content": "a" * 900_000 + "think>"}] * 2}
    ).encode(),
)
_LONG = post(CHAT, chat("word " * 100_000))
_HISTORY = post(
    CHAT,
    json.dumps(
        {"session_id": "long", "messages": [{"role": "user", "content": "x" * 900}] * 2000, "max_tokens": 1}
    ).encode(),
)
_HEADERS = b"GET /v1/models HTTP/1.1\r\n" + b"".join(b"x-%d: 1\r\n" % n for n in range(2000)) + b"\r\n"
_HEAD = post(CHAT, b"").partition(b"Content-Length")[0]
_SLOW = _HEAD + f"Authorization: Bearer {KEY}\r\nContent-Length: 9999\r\n\r\n".encode()
_STREAM = post(CHAT, chat("hi", stream=True, max_tokens=400))
Attack = Callable[[int, float], Awaitable[object]]


def _keys() -> Iterator[bytes]:
    for number in itertools.count():
        yield post(CHAT, b"{}", f"hope_{number}")


def _sessions() -> Iterator[bytes]:
    for number in itertools.count():
        yield post(CHAT, chat(f"number {number}", session_id=f"s{number}"))


ATTACKS: dict[str, Attack] = {
    "half-open": lambda port, until: hold(port, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", b"", 450, until),
    "slow head": lambda port, until: hold(port, b"GET /v1/models HTTP/1.1\r\n", b"x: y\r\n", 300, until),
    "slow body": lambda port, until: hold(port, _SLOW, b" ", 300, until),
    "no reader": lambda port, until: never_read(port, _STREAM, 40, until),
    "deep": lambda port, until: flood(port, itertools.repeat(_DEEP), 4, until),
    "wide": lambda port, until: flood(port, itertools.repeat(_WIDE), 4, until),
    "strings": lambda port, until: flood(port, itertools.repeat(_STRINGS), 4, until),
    "escapes": lambda port, until: flood(port, itertools.repeat(_ESCAPES), 4, until),
    "large": lambda port, until: flood(port, itertools.repeat(_LARGE), 4, until),
    "messages": lambda port, until: flood(port, itertools.repeat(_MESSAGES), 4, until),
    "long prompt": lambda port, until: flood(port, itertools.repeat(_LONG), 4, until),
    "history": lambda port, until: flood(port, itertools.repeat(_HISTORY), 4, until),
    "reasoning": lambda port, until: flood(port, itertools.repeat(_REASONING), 4, until),
    "headers": lambda port, until: flood(port, itertools.repeat(_HEADERS), 8, until),
    "noise": lambda port, until: flood(port, itertools.repeat(b"\x16\x03\x01\r\n\r\n"), 8, until),
    "bad keys": lambda port, until: flood(port, _keys(), 8, until),
    "new sessions": lambda port, until: flood(port, _sessions(), 8, until),
}
"""Name of each attack and how to run it against a port until a time (monotonic seconds)."""
