"""Defining test 6: of two writers, the one whose parent commit is no longer the head is refused; nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from taking import chat, chat_request, end_of, learn, num_turns, take
from toys import KEY

from hope_server.engine.engine import Engine
from hope_server.engine.turn import TurnFinished
from hope_server.errors import SessionConflict, SessionNotFound, VersionMismatch

pytestmark = pytest.mark.anyio
MakeEngine = Callable[..., Engine]


@pytest.fixture
async def writers(make_engine: MakeEngine) -> AsyncIterator[tuple[Engine, Engine]]:
    """Two engines on one store."""
    pair = make_engine(), make_engine()
    for engine in pair:
        await engine.start()
    yield pair
    for engine in pair:
        await engine.stop()


async def _try(engine: Engine, text: str) -> TurnFinished | SessionConflict:
    try:
        return await chat(engine, text)
    except SessionConflict as error:
        return error


async def test_the_writer_that_comes_second_is_refused_and_goes_on_after_the_first(writers) -> None:
    """Whoever commits on a head that moved gets SessionConflict; sent again, its turn follows the other's."""
    one, two = writers
    before = await chat(one, "Before")
    assert (await chat(two, "Also")).receipt.version_before == before.receipt.version_after
    ends = await asyncio.gather(_try(one, "First"), _try(two, "Second"))
    (won,) = [end for end in ends if isinstance(end, TurnFinished)]
    (loser, text) = (one, "First") if isinstance(ends[0], SessionConflict) else (two, "Second")
    assert await num_turns(one) == 3
    again = await chat(loser, text)
    assert again.receipt.version_before == won.receipt.version_after
    assert again.receipt.turn == 4


async def test_many_races_make_one_chain(writers) -> None:
    """Turns of both writers, repeated until each is kept: every commit follows the one before, none is lost."""
    kept: list[str] = []

    async def insist(engine: Engine, texts: list[str]) -> None:
        for text in texts:
            while isinstance(end := await _try(engine, text), SessionConflict):
                pass
            kept.append(end.receipt.version_after)

    await asyncio.gather(insist(writers[0], ["a", "b", "c"]), insist(writers[1], ["d", "e", "f"]))
    versions = await writers[0].session_versions(KEY)
    assert [each["turn"] for each in versions] == [6, 5, 4, 3, 2, 1]
    assert [each["parent"] for each in versions[:-1]] == [each["version"] for each in versions[1:]]
    assert {each["version"] for each in versions} == set(kept)


async def test_a_stale_cache_is_never_served(writers) -> None:
    """A server that has the session ready in memory still goes on from what another one committed since."""
    one, two = writers
    await chat(one, "Before")
    newer = await learn(two)
    receipt = (await chat(one, "After")).receipt
    assert (receipt.version_before, receipt.restored_from) == (newer.receipt.version_after, "store")


async def test_a_deleted_session_is_not_brought_back(writers) -> None:
    """A turn that was running when another server deleted the session fails, also where the id is in use again."""
    one, two = writers
    await chat(one, "Before")
    stream = one.chat(chat_request("Late", max_tokens=40))
    await anext(stream)
    assert await two.delete_session(KEY)
    with pytest.raises((SessionNotFound, SessionConflict)):
        await take(stream)
    with pytest.raises(SessionNotFound):
        await one.get_session(KEY)
    fresh = await chat(two, "Anew")
    assert (fresh.receipt.turn, fresh.receipt.version_before) == (1, None)
    assert (await chat(one, "Again")).receipt.turn == 2


async def test_a_caller_can_insist_on_the_version_it_knows(writers) -> None:
    """if_match lets the turn go on from that version only, whichever server is asked."""
    one, two = writers
    first = (await chat(one, "One")).receipt.version_after
    second = (await chat(two, "Two", if_match=first)).receipt.version_after
    with pytest.raises(VersionMismatch) as caught:
        await chat(one, "Three", if_match=first)
    assert (caught.value.expected, caught.value.found) == (first, second)
    assert await num_turns(one) == 2
    end = end_of(await take(one.chat(chat_request("Three", if_match=second))))
    assert end.receipt.turn == 3
