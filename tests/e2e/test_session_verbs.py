"""What can be done to a session besides talking to it, on every kind of store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial

import pytest
from taking import chat, chat_request, learn, named, num_turns, stored_state, take
from toys import KEY

from hope_server.engine import sessions
from hope_server.engine.engine import Engine
from hope_server.engine.session_card import MAX_TAGS, MAX_TURNS
from hope_server.engine.turn import SessionKey
from hope_server.errors import InvalidRequest, SessionNotFound, VersionMismatch, VersionNotFound

pytestmark = pytest.mark.anyio
MakeEngine = Callable[..., Engine]
COPY = SessionKey("default", "copy")


@pytest.fixture
async def engine(make_engine: MakeEngine) -> AsyncIterator[Engine]:
    """A running toy engine that keeps four versions."""
    engine = make_engine(keep_versions=4)
    await engine.start()
    yield engine
    await engine.stop()


async def test_what_a_session_is_can_be_changed(engine: Engine) -> None:
    """Freezing, life and labels are told, stay through turns, and leave the memory and the hot cache as they were."""
    await chat(engine)
    state = await stored_state(engine)
    info = await engine.update_session(KEY, is_frozen=True, ttl_seconds=600, metadata={"team": "blue"})
    assert (info.is_frozen, info.ttl_seconds, info.metadata, info.turn) == (True, 600, {"team": "blue"}, 1)
    assert info.expires is not None and 590 <= info.expires - info.updated <= 610
    assert await stored_state(engine) == state
    assert await engine.update_session(KEY, is_frozen=True, ttl_seconds=600) == info
    assert not (await engine.update_session(KEY, is_frozen=False)).is_frozen
    receipt = (await chat(engine)).receipt
    assert (receipt.turn, receipt.restored_from) == (2, "hot")
    after = await engine.get_session(KEY)
    assert (after.ttl_seconds, after.metadata) == (600, {"team": "blue"})
    assert (await engine.update_session(KEY, ttl_seconds=0, metadata={})).expires is None


async def test_an_empty_session_can_be_changed(engine: Engine) -> None:
    """A session that has seen nothing has a first version then, and begins its first turn on it."""
    await engine.create_session(KEY)
    info = await engine.update_session(KEY, metadata={"a": "b"})
    assert (info.turn, info.num_tokens, info.version is None) == (0, 0, False)
    await chat(engine, session=COPY)
    assert (await chat(engine)).receipt.turn == 1
    assert await stored_state(engine) == await stored_state(engine, COPY)
    assert (await engine.get_session(KEY)).metadata == {"a": "b"}


async def test_labels_are_bounded(engine: Engine) -> None:
    """Number and size are limited, and the message says to what."""
    await engine.create_session(KEY)
    with pytest.raises(InvalidRequest, match="17 pairs"):
        await engine.update_session(KEY, metadata={str(n): "x" for n in range(17)})
    with pytest.raises(InvalidRequest, match="4,096 bytes are kept"):
        await engine.update_session(KEY, metadata={str(n): "x" * 512 for n in range(16)})
    with pytest.raises(InvalidRequest, match="ttl is -1 seconds"):
        await engine.update_session(KEY, ttl_seconds=-1)


async def test_a_change_can_insist_on_a_version(engine: Engine) -> None:
    """If-Match holds for every verb, and nothing is changed where it does not."""
    first = (await chat(engine, "One")).receipt.version_after
    await chat(engine, "Two")
    before = await engine.get_session(KEY)
    calls = (
        partial(engine.update_session, KEY, is_frozen=True),
        partial(engine.reset_session, KEY),
        partial(engine.create_snapshot, KEY, "a"),
        partial(engine.rollback_session, KEY, first),
    )
    for call in calls:
        with pytest.raises(VersionMismatch):
            await call(if_match=first)
    assert await engine.get_session(KEY) == before


async def test_a_session_ends_when_its_life_is_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not found, not listed, and a turn under its name begins anew; each turn gives it another life."""
    await chat(engine, ttl_seconds=60)
    await chat(engine, session=COPY)
    now = (await engine.get_session(KEY)).updated
    monkeypatch.setattr("hope_server.engine.session_card.time.time", lambda: now + 30.0)
    assert (await engine.get_session(KEY)).expires == now + 60
    monkeypatch.setattr("hope_server.engine.session_card.time.time", lambda: now + 90.0)
    assert [info.session_id for info in await engine.list_sessions("default", 10, None)] == ["copy"]
    with pytest.raises(SessionNotFound):
        await engine.get_session(KEY)
    receipt = (await chat(engine)).receipt
    assert (receipt.turn, receipt.version_before) == (1, None)
    assert (await engine.get_session(KEY)).ttl_seconds is None


async def test_pages_are_full_where_sessions_have_ended(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended sessions take no place on a page."""
    names = [f"s{n}" for n in range(6)]
    for name in names:
        await chat(engine, session=SessionKey("default", name), ttl_seconds=60 if name < "s3" else None)
    over = sessions.is_over
    monkeypatch.setattr(sessions, "is_over", lambda record: over(record) or record.session.name < "s3")
    found = await engine.list_sessions("default", 3, None)
    assert sorted(info.session_id for info in found) == names[3:]
    assert len(await engine.list_sessions("default", 10, None)) == 3


async def test_a_snapshot_is_kept_and_gone_back_to(engine: Engine) -> None:
    """A tag keeps a version beyond the kept ones; going back by its name brings the very state, and keeps the tag."""
    await chat(engine, "One")
    state = await stored_state(engine)
    tagged = await engine.create_snapshot(KEY, "start")
    assert tagged.tags == {"start": tagged.tags["start"]}
    for number in range(6):
        await chat(engine, f"More {number}")
    assert len(await engine.session_versions(KEY)) == 5
    (listed,) = await engine.list_snapshots(KEY)
    assert (listed["tag"], listed["version"], listed["turn"]) == ("start", tagged.tags["start"], 1)
    assert (await engine.fork_session(KEY, "copy", "start")).tags == {}
    assert await stored_state(engine, COPY) == state
    back = await engine.rollback_session(KEY, "start")
    assert (back.turn, back.tags) == (1, tagged.tags)
    assert await stored_state(engine) == state
    assert (await chat(engine, "Two")).receipt.turn == 2


async def test_a_snapshot_that_is_deleted_is_kept_no_longer(engine: Engine) -> None:
    """Its version goes with the next commits; its name is free, and unknown."""
    await chat(engine, "One")
    version = (await engine.create_snapshot(KEY, "start")).tags["start"]
    for number in range(5):
        await chat(engine, f"More {number}")
    await engine.delete_snapshot(KEY, "start")
    assert version not in {each["version"] for each in await engine.session_versions(KEY)}
    for call in (engine.delete_snapshot(KEY, "start"), engine.rollback_session(KEY, "start")):
        with pytest.raises(VersionNotFound):
            await call
    assert (await engine.create_snapshot(KEY, "start")).tags["start"] != version


async def test_a_snapshot_asked_for_again_is_the_same(engine: Engine) -> None:
    """A repeated request finds its tag; one that would move a tag is refused."""
    first = (await chat(engine, "One")).receipt.version_after
    tagged = await engine.create_snapshot(KEY, "a")
    assert await engine.create_snapshot(KEY, "a") == tagged
    assert (await engine.create_snapshot(KEY, "a", first)).tags == {"a": first}
    await chat(engine, "Two")
    with pytest.raises(InvalidRequest, match="snapshot 'a' keeps version"):
        await engine.create_snapshot(KEY, "a")
    with pytest.raises(VersionNotFound):
        await engine.create_snapshot(KEY, "b", "f" * 32)
    for number in range(MAX_TAGS - 1):
        await engine.create_snapshot(KEY, f"t{number}")
    with pytest.raises(InvalidRequest, match="16 snapshots, the limit is 16"):
        await engine.create_snapshot(KEY, "last")


async def test_an_edit_keeps_what_belongs_to_the_session(engine: Engine) -> None:
    """Labels and snapshots made after the version that an edit or a roll-back goes back to stay."""
    first = (await chat(engine, "One", session=KEY)).receipt.version_after
    await chat(engine, "Two")
    await engine.create_snapshot(KEY, "two")
    await engine.update_session(KEY, metadata={"a": "b"})
    info = await engine.rollback_session(KEY, first)
    assert (list(info.tags), info.metadata, info.turn) == (["two"], {"a": "b"}, 1)
    assert [turn["turn"] for turn in await engine.session_turns(KEY)] == [2, 1]


async def test_a_reset_makes_levels_new(engine: Engine) -> None:
    """Named levels, or all with the text that is kept; the conversation stays in the window, and learning goes on."""
    await learn(engine, "Mira keeps the violin in the red barn. Otto sleeps in the shed. " * 2)
    before = await stored_state(engine)
    info = await engine.reset_session(KEY, ("fast",))
    after = await stored_state(engine)
    assert (info.turn, "fast" in after, after["slow"] == before["slow"]) == (2, False, True)
    assert (after["window"], after["journal"]) == (before["window"], before["journal"])
    info = await engine.reset_session(KEY)
    after = await stored_state(engine)
    assert set(after) == {"window", "journal"} and after["window"] == before["window"]
    assert after["journal"]["tokens"] == b""
    assert (await learn(engine)).receipt.update_norm["slow"] > 0
    with pytest.raises(InvalidRequest, match="levels names 'deep'; there are: fast, slow, journal"):
        await engine.reset_session(KEY, ("deep",))
    assert (await engine.session_turns(KEY))[1]["kind"] == "reset"


async def test_the_memory_is_measured(engine: Engine) -> None:
    """Writes, bytes and norms by level, what waits, the window, and the text that is kept."""
    await engine.create_session(KEY)
    assert (await engine.session_memory(KEY))["version"] is None
    text = "Mira keeps the violin in the red barn."
    receipt = (await learn(engine, text)).receipt
    found = await engine.session_memory(KEY)
    assert found["version"] == receipt.version_after
    assert found["position"] == len(text) + 1
    assert found["levels"]["slow"]["norm"] > 0 < found["levels"]["fast"]["norm"]
    assert found["levels"]["fast"]["num_writes"] == len(text) // 8
    assert found["pending_tokens"] == (len(text) + 1) % 8
    assert found["window"] == {"used": len(text) + 1, "size": 320}
    assert found["journal"]["pieces"] == 1 and found["journal"]["tokens"] == len(text)
    assert found["state_bytes"] == (await engine.get_session(KEY)).state_bytes
    await engine.reset_session(KEY, ("slow",))
    assert (await engine.session_memory(KEY))["levels"]["slow"]["norm"] == 0


async def test_turns_are_told_newest_first(engine: Engine) -> None:
    """The last ones, with what each read and learned."""
    receipt = (await learn(engine)).receipt
    for number in range(MAX_TURNS):
        await chat(engine, f"{number}", max_tokens=1)
    turns = await engine.session_turns(KEY)
    assert [turn["turn"] for turn in turns] == list(range(MAX_TURNS + 1, 1, -1))
    assert {turn["kind"] for turn in turns} == {"chat"}
    await engine.delete_session(KEY)
    receipt = (await learn(engine)).receipt
    (only,) = await engine.session_turns(KEY)
    assert (only["kind"], only["tokens_read"], only["tokens_learned"]) == ("learn", receipt.tokens_read, 16)
    assert only["update_norm"] == receipt.update_norm
    assert only["loss_before"] == receipt.loss_before


async def test_an_answer_is_found_by_its_name(engine: Engine) -> None:
    """As long as its version is kept; a change of the session does not hide it, and it is the newest of its state."""
    first = await take(engine.chat(chat_request("One", attempt=named("k1", answer_id="resp_1"))))
    await take(engine.chat(chat_request("Two", attempt=named("k2", answer_id="resp_2"))))
    assert await engine.find_answer(KEY, "resp_1") == first[-1].receipt.version_after
    info = await engine.update_session(KEY, is_frozen=True)
    assert await engine.find_answer(KEY, "resp_2") == info.version
    assert await engine.find_answer(KEY, "resp_3") is None
    assert await engine.find_answer(KEY, "") is None


async def test_a_fork_has_its_own_card(engine: Engine) -> None:
    """It lives as long and is labelled alike; it is not frozen, and has no snapshots and no turns of its own yet."""
    await chat(engine)
    await engine.create_snapshot(KEY, "a")
    await engine.update_session(KEY, is_frozen=True, ttl_seconds=600, metadata={"a": "b"})
    fork = await engine.fork_session(KEY, "copy")
    assert (fork.is_frozen, fork.tags, fork.ttl_seconds, fork.metadata) == (False, {}, 600, {"a": "b"})
    assert await engine.session_turns(COPY) == []
    assert (await chat(engine, session=COPY)).receipt.turn == 2
    assert (await engine.get_session(KEY)).is_frozen
    assert await stored_state(engine) != await stored_state(engine, COPY)


async def test_a_turn_that_waits_in_memory_is_kept_by_a_change(engine: Engine) -> None:
    """With durability none the turn is in no version yet; the change commits it first."""
    await chat(engine, durability="none")
    info = await engine.update_session(KEY, metadata={"a": "b"})
    assert (info.turn, info.metadata) == (1, {"a": "b"})
    assert await num_turns(engine) == 1
    assert (await chat(engine)).receipt.restored_from == "hot"


async def test_changes_and_turns_at_once_lose_nothing(engine: Engine) -> None:
    """Everything that was asked of a session at the same time has happened afterwards."""
    await chat(engine)
    await asyncio.gather(
        chat(engine, "One"),
        engine.update_session(KEY, metadata={"a": "b"}),
        chat(engine, "Two"),
        engine.create_snapshot(KEY, "now"),
    )
    info = await engine.get_session(KEY)
    assert (info.turn, info.metadata, list(info.tags)) == (3, {"a": "b"}, ["now"])
    assert replace(info, tags={}) == replace(await engine.update_session(KEY, metadata={"a": "b"}), tags={})
