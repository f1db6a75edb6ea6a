"""A key store in a Redis, for servers on several machines. It must be another Redis than that of the sessions.

The sessions' Redis is the one whose files and backups a destroyed key makes unreadable, so they must not hold the key.
Give this one an append-only file (`appendfsync always`): a key that it forgets is a session that is lost.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from hope_memory import redis_check
from hope_memory.errors import KeysUnavailable, StoreError
from hope_memory.redis_client import Operation, Patience, RedisClient
from hope_memory.redis_scripts import Script

# record, expected record or "" (none): an expected one is never empty
_PUT = Script(
    """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1])
return 1
"""
)
# expected record
_DESTROY = Script(
    """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
)
_INDEX = "places"


class RedisKeyStore:
    """A `KeyStore` under a prefix of a Redis or Redis Cluster that throws nothing away.

    A record is a string at {prefix}{place}; a sorted set has all places, and may have some that are gone.
    Raises ValueError for a URL that cannot be.
    """

    def __init__(self, url: str, prefix: str = "hope-keys:", patience: Patience | None = None) -> None:
        self._client = RedisClient(url, patience or Patience())
        self._prefix = prefix

    async def open(self) -> None:
        """As `KeyStore.open`."""
        if self._client.is_open:
            return
        self._client.open()
        try:
            async with self._operation() as redis:
                facts = await redis_check.read_facts(redis, self._client.is_cluster, self._client.where)
                redis_check.check(facts, self._client.where, self._client.is_cluster, allow_eviction=False)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """As `KeyStore.close`."""
        await self._client.close()

    async def get(self, places: Sequence[str]) -> list[bytes | None]:
        """As `KeyStore.get`."""
        async with self._operation() as redis:
            return [await redis.call("GET", self._prefix + place) for place in places]

    async def put(self, place: str, record: bytes, expected: bytes | None) -> bool:
        """As `KeyStore.put`."""
        async with self._operation() as redis:
            # The index first: a place without a record does no harm, a record that `places` does not name would.
            if expected is None:
                await redis.call("ZADD", self._prefix + _INDEX, 0, place)
            if await redis.run(_PUT, self._prefix + place, record, expected or b""):
                return True
            # A reply that was lost: the record may be there because the first try put it there.
            return bool(await redis.call("GET", self._prefix + place) == record)

    async def destroy(self, place: str, expected: bytes) -> bool:
        """As `KeyStore.destroy`; the append-only file is rewritten, so that the record leaves it too."""
        async with self._operation() as redis:
            gone = bool(await redis.run(_DESTROY, self._prefix + place, expected))
            await redis.call("ZREM", self._prefix + _INDEX, place)
            if await redis.call("EXISTS", self._prefix + place):
                # Another record was put there meanwhile, and its place must be known.
                await redis.call("ZADD", self._prefix + _INDEX, 0, place)
            if gone:
                # Best effort: a user may lack the right, and a rewrite that runs already must end first.
                with suppress(StoreError):
                    await redis.together(self._prefix + place, ("BGREWRITEAOF",))
            return gone

    async def places(self, after: str, limit: int) -> list[str]:
        """As `KeyStore.places`."""
        start = f"({after}" if after else "-"
        async with self._operation() as redis:
            found = await redis.call("ZRANGEBYLEX", self._prefix + _INDEX, start, "+", "LIMIT", 0, limit)
            return [place.decode() for place in found]

    @asynccontextmanager
    async def _operation(self) -> AsyncIterator[Operation]:
        try:
            async with self._client.operation() as redis:
                yield redis
        except KeysUnavailable:
            raise
        except StoreError as exc:
            raise KeysUnavailable(f"the key store cannot be used: {exc}") from exc
