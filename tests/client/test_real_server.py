"""Both clients with a real server: what only the two together can show."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hope_client import HopeError, LearnProgress, MemoryEvicted, SessionFrozen, StreamInterrupted

FACT = "The violin is in the red barn. "


@pytest.fixture
def hope(connect, toy_url):
    """A client of the real server."""
    return connect(toy_url, transport=None)


@pytest.fixture
def session(hope):
    """A new session under a name that no test before used."""
    return hope.session(f"s-{secrets.token_hex(6)}")


def test_the_lift_is_measured_against_no_session_at_all(hope, session):
    """A session that learned nothing lifts nothing; one that learned does, against the same value without it."""
    empty = session.recall_lift("Where is the violin?", " In the barn.")
    assert empty.lift == pytest.approx(0.0, abs=1e-6)
    session.learn(FACT * 4, passes=8)
    lift = session.recall_lift("Where is the violin?", " In the barn.")
    assert lift.without == pytest.approx(empty.without, abs=1e-6)
    assert lift.lift != 0.0
    assert lift.num_tokens == len(" In the barn.")


def test_a_long_text_that_broke_off_is_learned_once(hope, session, monkeypatch):
    """What was learned before is answered again, the rest is learned: as much in all as without the break."""
    monkeypatch.setattr("hope_client.parts.split.__defaults__", (200,))
    text = FACT * 24

    def break_off(progress: LearnProgress) -> None:
        if progress.part == 3:
            raise StreamInterrupted("cut")

    whole = hope.session(f"{session.id}-whole").learn(text, passes=1)
    with pytest.raises(StreamInterrupted) as caught:
        session.learn(text, passes=1, progress=break_off)
    resumed = session.learn(text, passes=1, key=caught.value.key)
    assert [receipt.replayed for receipt in resumed.receipts[:2]] == [True, True]
    assert not resumed.receipts[-1].replayed
    assert resumed.tokens_learned == whole.tokens_learned == session.info().tokens_learned


def test_leaving_a_stream_keeps_nothing_of_the_turn(session):
    """The version and the count of turns stay; the next turn is taken."""
    session.learn(FACT, passes=0)
    before = session.info()
    with session.stream("hello", max_tokens=512) as stream:
        next(iter(stream))
    assert session.chat("hello", max_tokens=2).receipt.version_before == before.version


def test_a_session_that_was_replaced_is_told(hope, session, monkeypatch):
    """Deleted by somebody else and made anew by the turn: the memory that was known is gone, and that is no secret."""
    session.learn(FACT, passes=0)
    hope.delete(session.id)
    # Births are told in whole seconds.
    core = session._core
    monkeypatch.setattr(core, "last_info", replace(core.last_info, created=1))
    with pytest.raises(MemoryEvicted, match="is gone"):
        session.chat("hello", max_tokens=2)
    assert session.chat("hello again", max_tokens=2).receipt.turn == 2


def test_a_frozen_session_refuses_to_learn(session):
    """Turns are answered, a text is not taken, and afterwards it is as before."""
    session.learn(FACT, passes=0)
    with session.frozen():
        assert session.chat("hello", max_tokens=2).receipt.not_learned == "frozen"
        with pytest.raises(SessionFrozen) as caught:
            session.learn(FACT)
        assert caught.value.status == 409
    assert session.chat("hello", max_tokens=2).receipt.tokens_learned > 0


def test_errors_of_a_real_server_have_their_codes(hope, session):
    """Unknown levels, versions and options are refused with the name of what is wrong."""
    with pytest.raises(HopeError) as caught:
        session.reset(["nonsense"])
    assert (caught.value.code, caught.value.param, caught.value.status) == ("invalid_request", "levels", 400)
    session.learn(FACT, passes=0)
    with pytest.raises(HopeError) as caught:
        session.fork(tag="nonsense")
    assert caught.value.code == "version_not_found"
    with pytest.raises(HopeError) as caught:
        session.chat("hi", extra_body={"temprature": 1})
    assert "temperature" in caught.value.message
