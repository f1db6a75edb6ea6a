"""The proxy does each fault that it promises, and nothing when none is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from fault_proxy import FaultProxy

pytestmark = pytest.mark.anyio
Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Ends]]


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


@dataclass
class Echo:
    """A server that answers every line with itself and keeps what it was sent."""

    port: int = 0
    lines: list[bytes] = field(default_factory=list)
    has_line: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it hangs up."""
        try:
            while line := await reader.readline():
                self.lines.append(line)
                self.has_line.set()
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    """A running echo server."""
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[FaultProxy]:
    """A proxy before the echo server."""
    async with FaultProxy(echo.port, seed=3) as proxy:
        yield proxy


@pytest.fixture
async def connect(proxy: FaultProxy) -> AsyncIterator[Connect]:
    """Opens connections through the proxy and closes them in the end."""
    opened: list[Ends] = []

    async def connect() -> Ends:
        opened.append(await asyncio.open_connection("127.0.0.1", proxy.port))
        return opened[-1]

    yield connect
    for _, writer in opened:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def asked(ends: Ends, line: bytes, timeout_seconds: float = 5.0) -> bytes:
    """Send a line and return the answer; empty where the connection ended."""
    reader, writer = ends
    writer.write(line)
    async with asyncio.timeout(timeout_seconds):
        return await reader.readline()


async def asked_on_and_on(ends: Ends, line: bytes) -> None:
    """Send a line and read the answer until the connection breaks."""
    while True:
        await asked(ends, line)


async def test_carries_everything_both_ways(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """Without faults the proxy is a wire, for large lines and several connections too."""
    first, second = await connect(), await connect()
    large = b"x" * 60_000 + b"\n"

    assert await asyncio.gather(asked(first, large), asked(second, b"two\n")) == [large, b"two\n"]
    assert (proxy.num_links, proxy.num_open, proxy.num_resets) == (2, 2, 0)
    assert proxy.up.num_bytes == proxy.down.num_bytes == len(large) + 4


async def test_a_hang_up_passes(proxy: FaultProxy, connect: Connect) -> None:
    """When the client ends its stream, the server sees it, and its own end comes back."""
    reader, writer = await connect()
    writer.write(b"last\n")
    writer.write_eof()

    assert await reader.read() == b"last\n"


@pytest.mark.parametrize("shape", ["latency", "bandwidth"])
async def test_slows_down(proxy: FaultProxy, connect: Connect, shape: str) -> None:
    """Latency and bandwidth delay the answer by what they promise, and leave it whole."""
    ends = await connect()
    if shape == "latency":
        proxy.up.latency_seconds, proxy.down.jitter_seconds = 0.1, 0.01
    else:
        proxy.down.bytes_per_second = 10_000
    began = time.monotonic()

    assert await asked(ends, b"y" * 999 + b"\n") == b"y" * 999 + b"\n"
    assert time.monotonic() - began >= 0.1


async def test_held_bytes_arrive_late_though_the_sender_left(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """A black hole on the way up lets nothing through; after it, what was sent arrives, its sender gone or not."""
    ends = await connect()
    proxy.up.hold()
    with pytest.raises(TimeoutError):
        await asked(ends, b"late\n", 0.05)
    ends[1].close()
    assert echo.lines == []

    proxy.heal()

    async with asyncio.timeout(5):
        await echo.has_line.wait()
    assert echo.lines == [b"late\n"]


async def test_a_black_hole_has_a_direction(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """A black hole on the way down hides the answer of a request that was received."""
    ends = await connect()
    proxy.down.hold()
    with pytest.raises(TimeoutError):
        await asked(ends, b"heard\n", 0.05)
    assert echo.lines == [b"heard\n"]

    proxy.heal()

    assert await asyncio.wait_for(ends[0].readline(), 5) == b"heard\n"


async def test_lost_bytes_never_arrive(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """A connection that lost bytes is reset when the fault ends; one that did not goes on."""
    lossy, quiet = await connect(), await connect()
    assert await asked(quiet, b"one\n") == b"one\n"
    proxy.up.lose()
    with pytest.raises(TimeoutError):
        await asked(lossy, b"gone\n", 0.05)

    proxy.heal()

    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(lossy[0].readline(), 5)
    assert await asked(quiet, b"two\n") == b"two\n"
    assert echo.lines == [b"one\n", b"two\n"]


async def test_reset_reaches_every_open_connection(proxy: FaultProxy, connect: Connect) -> None:
    """Every client sees a reset, and new connections work."""
    clients = [await connect() for _ in range(3)]
    for ends in clients:
        await asked(ends, b"here\n")

    assert proxy.reset() == 3

    for ends in clients:
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(ends[0].readline(), 5)
    assert await asked(await connect(), b"again\n") == b"again\n"


async def test_cuts_one_reply_after_the_request_was_done(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """The request arrives, its answer does not, and the next request is served."""
    ends = await connect()
    proxy.cut_next_reply()

    with pytest.raises(ConnectionResetError):
        await asked(ends, b"done\n")

    assert echo.lines == [b"done\n"]
    assert await asked(await connect(), b"next\n") == b"next\n"


@pytest.mark.parametrize("num_bytes", [0, 1, 9, 10, 11])
async def test_cuts_after_the_given_byte(proxy: FaultProxy, connect: Connect, echo: Echo, num_bytes: int) -> None:
    """Exactly that many bytes get through before the reset, so only whole lines among them are heard."""
    ends = await connect()
    await asked(ends, b"first\n")
    proxy.up.cut_after(num_bytes)

    with pytest.raises(ConnectionResetError):
        await asked_on_and_on(ends, b"0123\n0123\n")

    assert proxy.up.num_bytes == 6 + num_bytes
    assert await asked(await connect(), b"next\n") == b"next\n"


async def test_flips_one_bit_once(proxy: FaultProxy, connect: Connect) -> None:
    """One bit of the next bytes changes, the bytes after them are whole."""
    ends = await connect()
    proxy.up.flip_bit()
    ends[1].write(b"\0" * 40 + b"\n")
    ends[1].write_eof()
    sent = await asyncio.wait_for(ends[0].read(), 5)

    assert sum((a ^ b).bit_count() for a, b in zip(sent, b"\0" * 40 + b"\n", strict=True)) == 1
    assert await asked(await connect(), b"whole\n") == b"whole\n"


async def test_refuses(proxy: FaultProxy, connect: Connect, echo: Echo) -> None:
    """While it refuses, a new connection gets no answer; afterwards it does."""
    proxy.is_refusing = True
    with pytest.raises(ConnectionResetError):
        await asked(await connect(), b"no\n")

    proxy.heal()

    assert await asked(await connect(), b"yes\n") == b"yes\n"
    assert echo.lines == [b"yes\n"]
