"""Defining test 4: a fork and its parent do not see each other's writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import KEY, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import LearnRequest, Score, ScoreRequest, SessionKey, TurnFinished

FORK = SessionKey(KEY.tenant, "fork")


async def _learn(engine: Engine, key: SessionKey, text: str) -> TurnFinished:
    events = [event async for event in engine.learn(LearnRequest(key, text))]
    assert isinstance(events[-1], TurnFinished)
    return events[-1]


async def _scores(engine: Engine, key: SessionKey) -> list[Score]:
    return [
        score
        for window in (True, False)
        for score in await engine.score(
            ScoreRequest((" red barn.", " hotel"), prompt="Mira keeps", session=key, window=window)
        )
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("writer", [KEY, FORK])
async def test_a_write_to_one_is_not_seen_by_the_other(tmp_path: Path, writer: SessionKey) -> None:
    """Whichever of parent and fork learns on, the other answers exactly as before, hot or freshly loaded."""
    other = FORK if writer == KEY else KEY
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    await _learn(engine, KEY, "Mira keeps the violin in the red barn. Otto sleeps.")
    await engine.fork_session(KEY, FORK.session_id)
    before = await _scores(engine, other)
    assert await _scores(engine, writer) == before
    await _learn(engine, writer, "Mira keeps the passport in the hotel. Nobody knows why.")
    assert await _scores(engine, other) == before
    assert await _scores(engine, writer) != before
    await engine.stop()
    again = toy_engine(tmp_path / "store.db")
    await again.start()
    assert await _scores(again, other) == before
    await again.stop()
