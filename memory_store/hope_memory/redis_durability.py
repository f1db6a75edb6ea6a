"""How durably Redis holds a commit: what was asked is waited for, and what was reached is told."""

from __future__ import annotations

from dataclasses import replace

from hope_memory.durability import num_replicas
from hope_memory.errors import DurabilityUnmet, StoreUnavailable
from hope_memory.protocol import CommitInfo
from hope_memory.redis_check import ServerFacts
from hope_memory.redis_client import Operation
from hope_memory.redis_scripts import TOUCH

_HAS_WAITAOF = (7, 2)


async def reach(redis: Operation, key: str, info: CommitInfo, asked: str, facts: ServerFacts) -> CommitInfo:
    """Wait until the commit in the hash `key` is as durable as asked; return it with what was reached.

    Raises: DurabilityUnmet, also where nothing more can be learned because Redis is gone by now.
    """
    if asked == "commit":
        return replace(info, durability="commit")
    reached = "commit"
    try:
        if wanted := num_replicas(asked):
            found = await _wait(redis, key, "WAIT", wanted, redis.wait_ms)
            if isinstance(found, int) and found > 0:
                reached = f"replicated:{found}"
            is_met = isinstance(found, int) and found >= wanted
        else:
            is_met = await _is_on_disk(redis, key, facts)
            reached = "fsync" if is_met else reached
    except StoreUnavailable:
        is_met = False
    found_info = replace(info, durability=reached)
    if not is_met:
        raise DurabilityUnmet(found_info, asked)
    return found_info


async def _is_on_disk(redis: Operation, key: str, facts: ServerFacts) -> bool:
    if facts.is_valkey or facts.version >= _HAS_WAITAOF:
        found = await _wait(redis, key, "WAITAOF", 1, 0, redis.wait_ms)
        return isinstance(found, list) and found[0] == 1
    # An older Redis cannot be asked to write; it has written already if it does so before each answer.
    aof, policy = await redis.together(key, ("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "appendfsync"))
    return _value(aof) == b"yes" and _value(policy) == b"always"


async def _wait(redis: Operation, key: str, *command: str | int) -> object:
    # Redis waits for what the connection itself has written; the commit may have come down another one.
    touched, found = await redis.together(key, ("EVAL", TOUCH.text, 1, key), command)
    return touched if isinstance(touched, Exception) else found


def _value(reply: object) -> object:
    """The value in a reply to CONFIG GET of one name, which redis-py may have made a dict."""
    if isinstance(reply, dict):
        reply = [item for pair in reply.items() for item in pair]
    if not isinstance(reply, list) or len(reply) != 2:
        return None
    value = reply[1]
    return value.encode() if isinstance(value, str) else value
