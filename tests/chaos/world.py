"""The world of a chaos run: one Redis that forgets nothing, several servers, and a fault proxy on every wire.

client → client proxy → server → store proxy → redis-server (append-only file, synced before each answer)
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

import httpx
from fault_proxy import FaultProxy
from hope_memory import SnapshotStore, open_store
from hope_memory.key_store import SqliteKeyStore
from hope_memory.vault import Vault
from redis_server import RedisServer

from tests.chaos.turns import API_KEYS

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30.0
EXIT_SECONDS = 8.0
_POLL_SECONDS = 0.02


class ServerProcess:
    """One server: the same port and flags through all its lives."""

    def __init__(self, index: int, port: int, flags: list[str], log: Path) -> None:
        self.index = index
        self.port = port
        self.flags = [*flags, f"--port={port}"]
        self.log = log
        self.pid = 0
        self.busy = asyncio.Lock()

    @property
    def is_alive(self) -> bool:
        """Whether the process exists."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return self.pid > 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, if there is one."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def gone(self, timeout_seconds: float) -> bool:
        """Wait until the process has ended; whether it did in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.is_alive:
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            return False
        return True


class World:
    """Everything that a run starts, in one temporary folder. Use it as a context manager."""

    def __init__(self, folder: Path, num_servers: int, seed: int) -> None:
        self.folder = folder
        self.redis = RedisServer(folder / "redis", aof="always")
        self.servers: list[ServerProcess] = []
        self.store_proxies: list[FaultProxy] = []
        self.client_proxies: list[FaultProxy] = []
        self.num_late_exits = 0
        self._num_servers = num_servers
        self._seed = seed
        self._nursery: asyncio.subprocess.Process | None = None
        self._ordering = asyncio.Lock()

    async def __aenter__(self) -> World:
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    @property
    def urls(self) -> list[str]:
        """Where clients reach each server."""
        return [f"http://127.0.0.1:{proxy.port}" for proxy in self.client_proxies]

    def store(self) -> SnapshotStore:
        """A store of the harness's own, not yet open, straight to Redis."""
        vault = Vault(self.folder / "hope.key", SqliteKeyStore(self.folder / "keys.db"))
        return open_store(self.redis.url, vault=vault)

    async def start_server(self, server: ServerProcess) -> None:
        """Fork the server and wait until it takes turns or has ended again."""
        assert self._nursery is not None and self._nursery.stdin is not None and self._nursery.stdout is not None
        async with self._ordering:
            order = {"flags": server.flags, "log": str(server.log)}
            self._nursery.stdin.write(json.dumps(order).encode() + b"\n")
            server.pid = int(await self._nursery.stdout.readline())

    async def until_ready(self, server: ServerProcess) -> None:
        """Wait until a server takes turns; one that ended because Redis was away is started again."""
        async with asyncio.timeout(START_SECONDS), httpx.AsyncClient() as http:
            while True:
                with suppress(httpx.HTTPError):
                    if (await http.get(f"http://127.0.0.1:{server.port}/ready")).status_code == 200:
                        return
                if not server.is_alive:
                    await self.start_server(server)
                await asyncio.sleep(_POLL_SECONDS)

    async def stop_server(self, server: ServerProcess) -> None:
        """End a server by SIGTERM; one that does not end in EXIT_SECONDS is counted and killed."""
        server.signal(signal.SIGTERM)
        if not await server.gone(EXIT_SECONDS):
            self.num_late_exits += 1
            server.signal(signal.SIGKILL)
            await server.gone(EXIT_SECONDS)

    async def heal(self) -> None:
        """End every fault and wait until all servers take turns."""
        for proxy in (*self.store_proxies, *self.client_proxies):
            proxy.heal()
        for server in self.servers:
            async with server.busy:
                server.signal(signal.SIGCONT)
                await self.until_ready(server)

    async def close(self) -> None:
        """Stop everything that was started."""
        for server in self.servers:
            server.signal(signal.SIGCONT)
            server.signal(signal.SIGKILL)
        for proxy in (*self.store_proxies, *self.client_proxies):
            await proxy.close()
        if self._nursery is not None:
            assert self._nursery.stdin is not None
            self._nursery.stdin.close()
            await self._nursery.wait()
        self.redis.stop()

    async def _start(self) -> None:
        self.redis.start()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HOPE_")}
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._nursery = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.server", "--nursery"),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for index in range(self._num_servers):
            to_store = FaultProxy(self.redis.port, seed=self._seed * 100 + index)
            await to_store.start()
            self.store_proxies.append(to_store)
            flags = [
                f"--store=redis://127.0.0.1:{to_store.port}/0",
                f"--key-file={self.folder / 'hope.key'}",
                f"--key-store={self.folder / 'keys.db'}",
                f"--api-keys={','.join(API_KEYS)}",
            ]
            server = ServerProcess(index, free_port(), flags, self.folder / f"server-{index}.log")
            to_server = FaultProxy(server.port, seed=self._seed * 100 + 50 + index)
            await to_server.start()
            self.client_proxies.append(to_server)
            self.servers.append(server)
            await self.start_server(server)
        for server in self.servers:
            await self.until_ready(server)


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
