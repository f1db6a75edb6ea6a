"""Requests whose repetition wanders about in the network, and arrives when the session has long gone on, or is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import FaultProxy, Lane
from hope_memory import Array, Level, SessionId, SessionMissing, Snapshot, SnapshotStore, StoreUnavailable, open_store
from hope_memory.key_store import SqliteKeyStore
from hope_memory.protocol import Request
from hope_memory.redis_client import Operation, Word
from hope_memory.redis_scripts import CREATE, FLIP, Script
from hope_memory.vault import Vault
from redis_server import RedisServer

pytestmark = pytest.mark.anyio
SESSION = SessionId("acme", "s")
KEPT = 2
Stores = tuple[SnapshotStore, SnapshotStore, FaultProxy]


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis without persistence."""
    with RedisServer(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def stores(server: RedisServer, tmp_path: Path) -> AsyncIterator[Stores]:
    """A store behind a proxy, one with a straight connection, and the proxy."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(FaultProxy(server.port))
        opened = []
        for port in (proxy.port, server.port):
            vault = Vault(tmp_path / "hope.key", SqliteKeyStore(tmp_path / "keys.db"))
            store = open_store(f"redis://127.0.0.1:{port}/0", keep_versions=KEPT, vault=vault)
            await store.open()
            stack.push_async_callback(store.close)
            opened.append(store)
        yield opened[0], opened[1], proxy


def snapshot(turn: int) -> Snapshot:
    """A state of two levels."""
    level = Level({"w": Array("uint8", (4,), bytes([turn] * 4))})
    return Snapshot("toy", {"info": {"turn": turn}}, {"fast": level, "slow": level})


@pytest.mark.parametrize(
    ("request_id", "is_pinned"),
    [("r-1", False), (None, False), ("r-1", True)],
    ids=["with a request id", "without", "that pinned a version"],
)
async def test_a_flip_that_comes_again_much_later_harms_nothing(
    stores: Stores, request_id: str | None, is_pinned: bool
) -> None:
    """The commit happens and its reply is lost; the repetition is held up until the version is no longer kept, while a
    level that it wrote still is. When the repetition arrives, that level stays readable.
    """
    slow, straight, proxy = stores
    # The first commit also brings the script to Redis, so that the next one is a single request.
    tip = (await straight.commit(SESSION, None, snapshot(0))).version
    flips = 0

    def strike(lane: Lane, data: bytes) -> None:
        nonlocal flips
        if lane is proxy.up and FLIP.sha.encode() in data:
            flips += 1
            if flips == 1:
                proxy.cut_next_reply()
            else:
                proxy.up.hold()

    proxy.watch = strike
    request = None if request_id is None else Request(request_id, b"d", b"r")
    with pytest.raises(StoreUnavailable):
        await slow.commit(SESSION, tip, snapshot(1), request=request, pins=frozenset({tip} if is_pinned else ()))
    head = (await straight.get(SESSION)).head
    assert head is not None and head.meta["turn"] == 1
    for turn in range(2, KEPT + 3):
        head = await straight.commit(SESSION, head.version, snapshot(turn), frozenset({"slow"}))

    num_bytes = proxy.up.num_bytes
    assert flips >= 2
    proxy.watch = None
    proxy.heal()
    async with asyncio.timeout(5):
        while proxy.up.num_bytes == num_bytes:
            await asyncio.sleep(0.01)
    await straight.ping()
    await slow.ping()

    loaded = await straight.load(SESSION)
    assert (loaded.info.version, loaded.skipped) == (head.version, ())
    assert bytes(loaded.snapshot.levels["slow"].arrays["w"].data) == bytes([1] * 4)
    # What the late commit pinned is long unpinned, and stays gone.
    assert tip not in {info.version for info in await straight.versions(SESSION)}


async def test_a_creation_that_comes_again_after_a_delete_brings_nothing_back(
    server: RedisServer, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repetition of the request that made a session arrives when the session is deleted: its name stays free."""
    _, straight, _ = stores
    made: list[tuple[str, tuple[Word, ...]]] = []
    run = Operation.run

    async def run_and_note(self: Operation, script: Script, key: str, *args: Word) -> Any:
        if script is CREATE:
            made.append((key, args))
        return await run(self, script, key, *args)

    monkeypatch.setattr(Operation, "run", run_and_note)
    first, _ = await straight.create(SESSION)
    assert await straight.delete(SESSION)

    with server.client() as client:
        key, args = made[0]
        client.eval(CREATE.text, 1, key, *args)

    with pytest.raises(SessionMissing):
        await straight.get(SESSION)
    again, is_new = await straight.create(SESSION)
    assert is_new and again.birth != first.birth
