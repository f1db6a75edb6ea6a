"""A TCP proxy that does to connections, at a test's command, what networks and dying programs do to them.

Each direction is a `Lane`: `up` carries what the client sends, `down` what the server answers. A change of a lane takes
effect at once, on connections that are open too. Chance (jitter, which bit flips) comes from the seed alone.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

_READ_BYTES = 64 << 10
_QUEUE_READS = 256
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass(slots=True)
class Lane:
    """What happens to the bytes of one direction.

    latency_seconds, jitter_seconds: every byte arrives later by the one, plus up to the other by chance.
    bytes_per_second: bandwidth of each connection; 0 is unlimited.
    num_bytes: carried so far.
    """

    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float = 0.0
    num_bytes: int = 0
    _is_losing: bool = False
    _cut_after: int | None = None
    _num_flips: int = 0
    _is_open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._is_open.set()

    def hold(self) -> None:
        """Black hole: nothing arrives until `heal`; then all of it does, late, even if its sender has hung up."""
        self._is_open.clear()

    def lose(self) -> None:
        """Black hole that keeps nothing: `heal` resets the connections that lost bytes, as no stream has a gap."""
        self._is_losing = True

    def cut_after(self, num_bytes: int) -> None:
        """Carry that many more bytes, counted over all connections, then reset every connection; once."""
        self._cut_after = num_bytes

    def flip_bit(self) -> None:
        """Change one bit of the next bytes that pass; once."""
        self._num_flips += 1


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and connects each client to the target. Use it as a context manager.

    is_refusing: new connections are reset before a byte passes.
    watch: called with a lane and bytes before they pass, so that a test can strike at a certain request.
    num_links: connections accepted so far; num_resets: connections that the proxy itself has reset.
    """

    def __init__(self, target_port: int, target_host: str = "127.0.0.1", seed: int = 0) -> None:
        self.up = Lane()
        self.down = Lane()
        self.is_refusing = False
        self.watch: Callable[[Lane, bytes], None] | None = None
        self.port = 0
        self.num_links = 0
        self.num_resets = 0
        self._target = (target_host, target_port)
        self._random = random.Random(seed)
        self._links: set[_Link] = set()
        self._num_cut_replies = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> FaultProxy:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Listen; `port` says where."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and reset what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [link.task for link in self._links]
        self.reset()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def reset(self) -> int:
        """Reset every open connection, both ends; returns how many it was."""
        links = list(self._links)
        for link in links:
            self._reset(link)
        return len(links)

    def cut_next_reply(self) -> None:
        """Let the next request through, and reset its connection instead of carrying the answer; once."""
        self._num_cut_replies += 1

    def heal(self) -> None:
        """End every fault, also those that have not happened yet."""
        self.is_refusing, self._num_cut_replies = False, 0
        for lane in (self.up, self.down):
            lane.latency_seconds = lane.jitter_seconds = lane.bytes_per_second = 0.0
            lane._is_losing, lane._cut_after, lane._num_flips = False, None, 0
            lane._is_open.set()
        for link in [link for link in self._links if link.has_gap]:
            self._reset(link)

    # -- private ---

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link([writer])
        link.task = asyncio.create_task(self._serve(link, reader, writer))
        self.num_links += 1
        self._links.add(link)
        if self.is_refusing:
            self._reset(link)

    async def _serve(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            link.writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(link, self.up, reader, far_writer))
                group.create_task(self._carry(link, self.down, far_reader, writer))
        except* OSError:
            link.sever()
        finally:
            self._links.discard(link)
            for each in link.writers:
                each.close()

    async def _carry(self, link: _Link, lane: Lane, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # `drain` returns when all is with the kernel, so a reset cannot take back what was carried.
        writer.transport.set_write_buffer_limits(0)
        queue: _Queue = asyncio.Queue(_QUEUE_READS)
        reading = asyncio.create_task(self._read(lane, reader, queue))
        try:
            while data := await self._arrived(link, lane, queue):
                if lane is self.down and self._num_cut_replies:
                    self._num_cut_replies -= 1
                    self._reset(link)
                await self._write(lane, writer, data)
            if writer.can_write_eof():
                writer.write_eof()
        finally:
            reading.cancel()

    def _reset(self, link: _Link) -> None:
        self.num_resets += 1
        link.sever()
        link.task.cancel()

    async def _read(self, lane: Lane, reader: asyncio.StreamReader, queue: _Queue) -> None:
        clock, data = asyncio.get_running_loop().time, b"?"
        while data:
            try:
                data = await reader.read(_READ_BYTES)
            except OSError:
                data = b""
            delay = lane.latency_seconds + self._random.uniform(0, lane.jitter_seconds)
            await queue.put((clock() + delay, data))

    async def _arrived(self, link: _Link, lane: Lane, queue: _Queue) -> bytes:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            if self.watch is not None and data:
                self.watch(lane, data)
            await lane._is_open.wait()
            if not (lane._is_losing and data):
                return data
            link.has_gap = True

    async def _write(self, lane: Lane, writer: asyncio.StreamWriter, data: bytes) -> None:
        if lane._num_flips:
            lane._num_flips -= 1
            changed = bytearray(data)
            changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
            data = bytes(changed)
        if lane.bytes_per_second:
            await asyncio.sleep(len(data) / lane.bytes_per_second)
        is_last = lane._cut_after is not None and lane._cut_after <= len(data)
        if lane._cut_after is not None:
            data = data[: lane._cut_after]
            lane._cut_after = None if is_last else lane._cut_after - len(data)
        lane.num_bytes += len(data)
        writer.write(data)
        await writer.drain()
        if is_last:
            self.reset()


@dataclass(eq=False)
class _Link:
    """One client's connection: its open ends, the task that serves it, whether bytes of it were lost."""

    writers: list[asyncio.StreamWriter]
    task: asyncio.Task[None] = field(init=False)
    has_gap: bool = False

    def sever(self) -> None:
        for writer in self.writers:
            ended: socket.socket = writer.get_extra_info("socket")
            if ended.fileno() >= 0:
                ended.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
