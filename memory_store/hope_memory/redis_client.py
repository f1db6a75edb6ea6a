"""The way to a Redis or a Redis Cluster: bounded connections, one deadline for each operation, safe repeats.

redis-py repeats nothing here: it would repeat what must not be, and wait for a minute on a Redis that hangs. All that
the store asks may be asked twice, so an operation repeats it itself, until it made no progress for `deadline_seconds`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.cluster import PipelineCommand, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from hope_memory.errors import StoreUnavailable
from hope_memory.redis_breaker import Breaker
from hope_memory.redis_errors import FAMILY, is_transient, store_error
from hope_memory.redis_scripts import Script

Word = str | bytes | int | float
_CLUSTER = "+cluster"
_READ_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and for how many at once.

    deadline_seconds: an operation that got no answer for so long fails; command_seconds: one command is given up, and
    asked again, after so long; connect_seconds: likewise for a connection. max_connections: to each node; operations
    beyond as many wait. max_failures: operations in a row that got no answer before others fail at once, for
    open_seconds, then one is let through to see.
    """

    deadline_seconds: float = 2.0
    command_seconds: float = 1.0
    connect_seconds: float = 0.5
    max_connections: int = 16
    max_failures: int = 3
    open_seconds: float = 1.0


class RedisClient:
    """Connections to one Redis, named by a URL: redis, rediss, redis+cluster, rediss+cluster or unix."""

    def __init__(self, url: str, patience: Patience) -> None:
        scheme, _, rest = url.partition("://")
        self.is_cluster = scheme.endswith(_CLUSTER)
        if scheme.removesuffix(_CLUSTER) not in ("redis", "rediss", "unix") or url.startswith("unix" + _CLUSTER):
            kinds = "redis, rediss, redis+cluster, rediss+cluster or unix"
            raise ValueError(f"a Redis URL begins with {kinds}, not {scheme}")
        self.where = _address(url)
        self.patience = patience
        self._url = f"{scheme.removesuffix(_CLUSTER)}://{rest}"
        self._redis: Any = None
        self._turns = asyncio.Semaphore(patience.max_connections)
        self._breaker = Breaker(patience.max_failures, patience.open_seconds, _now)

    @property
    def is_open(self) -> bool:
        """Whether `open` was called and `close` was not."""
        return self._redis is not None

    def open(self) -> None:
        """Make ready to connect; connections are made when they are needed. Raises ValueError for a URL's options."""
        kind: Any = RedisCluster if self.is_cluster else Redis
        try:
            self._redis = kind.from_url(
                self._url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                max_connections=self.patience.max_connections,
                socket_timeout=None,
                socket_connect_timeout=self.patience.connect_seconds,
                socket_read_size=_READ_BYTES,
                health_check_interval=0,
            )
            if not self.is_cluster:
                # Only a connection looks at the options of the URL.
                self._redis.connection_pool.make_connection()
        except (TypeError, ValueError) as exc:
            self._redis = None
            # The text may quote the URL, and a password with it.
            raise ValueError(f"the URL of {self.where} has a part that cannot be read") from exc
        except exceptions.RedisClusterException as exc:
            raise ValueError(f"{self.where}: {exc}") from exc

    async def close(self) -> None:
        """Close all connections; closing twice is fine."""
        redis, self._redis = self._redis, None
        if redis is not None:
            # What is left to do is to free sockets, and that must not fail a shutdown.
            with suppress(*FAMILY):
                await redis.aclose()

    @asynccontextmanager
    async def operation(self) -> AsyncIterator[Operation]:
        """One operation of the store, as a block: its calls share a deadline, and the breaker hears how it went.

        Raises: StoreUnavailable at once where the client is not open or the breaker is.
        """
        if self._redis is None:
            raise StoreUnavailable(f"the store at {self.where} is not open")
        if not self._breaker.admits():
            raise StoreUnavailable(f"{self.where} did not answer lately and is asked again in a moment; try later")
        try:
            async with asyncio.timeout(self.patience.deadline_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise StoreUnavailable(f"all connections to {self.where} are busy; try later") from None
        operation = Operation(self._redis, self)
        try:
            yield operation
        finally:
            self._turns.release()
            if operation.was_answered is not None:
                (self._breaker.succeeded if operation.was_answered else self._breaker.failed)()


class Operation:
    """Calls that belong together. Each raises StoreFull or StoreUnavailable."""

    def __init__(self, redis: Any, client: RedisClient) -> None:
        self._redis = redis
        self._client = client
        self._end = _now() + client.patience.deadline_seconds
        self.was_answered: bool | None = None

    @property
    def wait_ms(self) -> int:
        """How long a command may wait on the server, so that its answer is here in time."""
        return round(self._client.patience.command_seconds * 800)

    async def call(self, *command: Word) -> Any:
        """Send one command, which may be sent again, and return its reply."""
        return await self._until_answered(lambda: self._redis.execute_command(*command))

    async def run(self, script: Script, key: str, *args: Word) -> Any:
        """Run a script on one key and return its reply."""

        async def run() -> Any:
            try:
                return await self._redis.execute_command("EVALSHA", script.sha, 1, key, *args)
            except exceptions.NoScriptError:
                return await self._redis.execute_command("EVAL", script.text, 1, key, *args)

        return await self._until_answered(run)

    async def together(self, key: str, *commands: Sequence[Word]) -> list[Any]:
        """Send commands about one key down one connection and return their replies, of which each may be an error."""

        async def send() -> list[Any]:
            if not self._client.is_cluster:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for command in commands:
                        pipe.execute_command(*command)
                    return list(await pipe.execute(raise_on_error=False))
            await self._redis.initialize()
            sent = [PipelineCommand(index, *command) for index, command in enumerate(commands)]
            await self._redis.get_node_from_key(key).execute_pipeline(sent)
            return [command.result for command in sent]

        replies: list[Any] = await self._until_answered(send)
        return replies

    async def _until_answered(self, ask: Any) -> Any:
        patience, pause = self._client.patience, 0.01
        while True:
            left = self._end - _now()
            try:
                async with asyncio.timeout(min(patience.command_seconds, left)):
                    reply = await ask()
            except FAMILY as exc:
                if not is_transient(exc):
                    # An error that Redis itself reports is an answer.
                    self.was_answered = isinstance(exc, exceptions.ResponseError)
                    raise store_error(exc, self._client.where) from exc
                pause = min(0.2, 2 * pause) * random.uniform(0.5, 1.0)
                if _now() + pause >= self._end:
                    self.was_answered = False
                    raise store_error(exc, self._client.where) from exc
                await asyncio.sleep(pause)
            else:
                self.was_answered = True
                self._end = _now() + patience.deadline_seconds
                return reply


def _now() -> float:
    return asyncio.get_running_loop().time()


def _address(url: str) -> str:
    """The URL without user, password and options."""
    parts = urlsplit(url)
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise ValueError("the port in the Redis URL is no number") from None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    return f"Redis {parts.scheme}://{host}{port}{parts.path}"
