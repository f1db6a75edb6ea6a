"""What a Redis must be to hold sessions: checked when the store is opened, each fault in one line."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from hope_memory.errors import StoreUnavailable
from hope_memory.redis_client import Operation

_LOG = logging.getLogger("hope_memory")
_OLDEST = (7, 0)
# The first releases of their series without the faults in Lua (CVE-2025-49844, -46817, -46818, -46819).
_SOUND = ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2))


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a Redis says of itself in INFO."""

    version: tuple[int, ...]
    is_valkey: bool
    is_cluster: bool
    is_replica: bool
    maxmemory: int
    policy: str
    has_aof: bool


async def read_facts(redis: Operation, is_cluster: bool, where: str) -> ServerFacts:
    """Ask a Redis, or any node of a cluster, for its facts. Raises StoreUnavailable."""
    # Clusters answer INFO node by node, so there it is the node of some key that is asked.
    replies = await redis.together("hope", ("INFO",)) if is_cluster else [await redis.call("INFO")]
    if isinstance(replies[0], Exception):
        raise StoreUnavailable(f"{where} does not answer INFO: {str(replies[0])[:200]}")
    info = replies[0] if isinstance(replies[0], dict) else _parse(replies[0])
    version = info.get("valkey_version") or info.get("redis_version", "0")
    return ServerFacts(
        version=tuple(int(part) for part in re.findall(r"\d+", str(version))[:3]),
        is_valkey="valkey_version" in info,
        is_cluster=str(info.get("cluster_enabled", 0)) == "1",
        is_replica=info.get("role") == "slave",
        maxmemory=int(info.get("maxmemory", 0)),
        policy=str(info.get("maxmemory_policy", "noeviction")),
        has_aof=str(info.get("aof_enabled", 0)) == "1",
    )


def check(facts: ServerFacts, where: str, is_cluster: bool, allow_eviction: bool) -> None:
    """Raise StoreUnavailable where a server cannot hold sessions; log what is only unwise."""
    name = "Valkey" if facts.is_valkey else "Redis"
    shown = ".".join(map(str, facts.version))
    if facts.version[:2] < _OLDEST:
        raise StoreUnavailable(f"{where} is {name} {shown}; the store needs Redis 7.0 or newer, or Valkey")
    if facts.is_cluster and not is_cluster:
        raise StoreUnavailable(f"{where} is part of a cluster; use redis+cluster:// or rediss+cluster://")
    if is_cluster and not facts.is_cluster:
        raise StoreUnavailable(f"{where} is not a cluster; use redis:// or rediss://")
    if facts.is_replica and not is_cluster:
        raise StoreUnavailable(f"{where} is a read-only replica; name the primary")
    if facts.maxmemory and facts.policy != "noeviction" and not allow_eviction:
        raise StoreUnavailable(
            f"{where} has maxmemory-policy {facts.policy}, which throws sessions away when memory is full; "
            "set it to noeviction, or allow eviction in the store's options"
        )
    first_sound = next((sound for sound in _SOUND if sound[:2] == facts.version[:2]), _SOUND[0])
    if not facts.is_valkey and facts.version < first_sound:
        _LOG.warning("%s is Redis %s, whose Lua has known faults; use 7.2.11, 7.4.6, 8.0.4 or newer", where, shown)
    if not facts.has_aof:
        _LOG.warning("%s keeps no append-only file: what it acknowledges is lost if it crashes", where)


def _parse(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
