"""Which requests were learned stands in the sealed manifest, not only in fields that anybody could remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hope_memory import SessionId, SnapshotCorrupt
from hope_memory.codec import KEEP_REQUESTS
from hope_memory.protocol import Request

if TYPE_CHECKING:
    from tests.memory_store.conftest import MakeSnapshot, RedisBackend

pytestmark = pytest.mark.anyio


def ask(number: int) -> Request:
    """A request."""
    return Request(f"r-{number}", b"d", b"reply")


async def test_a_request_whose_answer_was_removed_is_not_learned_again(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """With the answers taken out of Redis, a request that comes again is refused, and the head stays."""
    store = redis_backend.store()
    await store.open()
    first = await store.commit(session, None, make_snapshot(1), request=ask(1))
    head = await store.commit(session, first.version, make_snapshot(2), request=ask(2))
    for node, key in redis_backend.hashes():
        for field in redis_backend.fields(key):
            if field.startswith(("a:", "q:")):
                node.hdel(key, field)

    for number in (1, 2):
        with pytest.raises(SnapshotCorrupt, match="answered before"):
            await store.commit(session, head.version, make_snapshot(3), request=ask(number))

    assert (await store.get(session)).head == head
    assert (await store.commit(session, head.version, make_snapshot(3), request=ask(3))).number == 3
    await store.close()


async def test_as_many_requests_are_stored_as_are_remembered(
    redis_backend: RedisBackend, session: SessionId, make_snapshot: MakeSnapshot
) -> None:
    """However many turns a session has, Redis keeps the answers of the latest ones and no more."""
    store = redis_backend.store(keep_versions=2)
    await store.open()
    tip = None
    for number in range(KEEP_REQUESTS + 5):
        tip = (await store.commit(session, tip, make_snapshot(number), request=ask(number))).version

    ((_, key),) = redis_backend.hashes()
    assert sum(field.startswith("a:") for field in redis_backend.fields(key)) == KEEP_REQUESTS
    assert await store.find_request(session, "r-4") is None
    assert (await store.find_request(session, "r-5")) is not None
    await store.close()
