"""Make `schema1.sqlite`: `PYTHONPATH=OLD/memory_store python make_schema1.py FILE`, with OLD a checkout of release 0.1.

Pages are small here so that the file is; readers take any page size.
"""

from __future__ import annotations

import asyncio
import sys

from hope_memory import Array, Level, SessionId, Snapshot, SqliteStore, sqlite_store


def snapshot_of(turn: int) -> Snapshot:
    """Return the state after a turn, two levels that both say it."""
    fast = Level(
        {"w": Array("float32", (3,), bytes([turn]) * 12), "steps": Array("int64", (), turn.to_bytes(8, "little"))}
    )
    slow = Level({"w": Array("bfloat16", (2, 3), bytes([turn]) * 12), "mask": Array("bool", (3,), b"\x00\x01\x01")})
    return Snapshot("golden-model", {"info": {"turn": turn}, "rng": b"\x00\xff"}, {"fast": fast, "slow": slow})


async def make(path: str) -> None:
    """Write a chat of turns 1 to 3 that went back to 2, a fork of its turn 1 with a turn 9, and an empty session."""
    sqlite_store.PAGE_BYTES = 1024
    store = SqliteStore(path)
    await store.open()
    chat = SessionId("acme", "chat-1")
    first = await store.commit(chat, None, snapshot_of(1), request_id="request-1")
    second = await store.commit(chat, first.version, snapshot_of(2), request_id="request-2")
    third = await store.commit(chat, second.version, snapshot_of(3), frozenset({"slow"}))
    fork = await store.fork(chat, "fork ü", first.version)
    await store.rollback(chat, second.version)
    assert fork.head is not None
    await store.commit(SessionId("acme", "fork ü"), fork.head.version, snapshot_of(9), frozenset({"slow"}))
    await store.create(SessionId("rival", "empty"))
    assert third.number == 3
    await store.close()


if __name__ == "__main__":
    asyncio.run(make(sys.argv[1]))
