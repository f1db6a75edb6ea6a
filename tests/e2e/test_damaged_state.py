"""A stored state that is damaged, or of another model, is refused with the reason; no session is harmed."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
from toys import KEY, SERVED, make_params, make_tokenizer, toy_engine, toy_settings

from hope_server.engine.assembly import assemble
from hope_server.engine.engine import Engine
from hope_server.engine.turn import ChatRequest, LearnRequest, Message, Receipt, SamplingParams, TurnFinished
from hope_server.errors import SessionConflict, StateIncompatible


async def _learn(engine: Engine, text: str) -> Receipt:
    last = [event async for event in engine.learn(LearnRequest(KEY, text))][-1]
    assert isinstance(last, TurnFinished)
    assert last.receipt is not None
    return last.receipt


async def _chat(engine: Engine) -> Receipt:
    request = ChatRequest((Message("user", "And now?"),), SamplingParams(max_tokens=4, seed=0), KEY)
    last = [event async for event in engine.chat(request)][-1]
    assert isinstance(last, TurnFinished)
    assert last.receipt is not None
    return last.receipt


def _alter(path: Path, version: str, level: str) -> None:
    """Flip one bit in the middle of a level that this version wrote."""
    with sqlite3.connect(path) as connection:
        (data,) = connection.execute(
            "SELECT data FROM blobs WHERE origin = ? AND level = ?", (version, level)
        ).fetchone()
        altered = bytearray(data)
        altered[len(altered) // 2] ^= 1
        connection.execute("UPDATE blobs SET data = ? WHERE origin = ? AND level = ?", (bytes(altered), version, level))
    connection.close()


@pytest.mark.anyio
async def test_an_altered_head_is_set_aside_and_the_session_goes_on_from_the_version_before(tmp_path: Path) -> None:
    """The turn that finds the damage says so and is not kept; sent again, it follows the newest intact version."""
    path = tmp_path / "store.db"
    engine = toy_engine(path)
    await engine.start()
    intact = await _learn(engine, "Mira keeps the violin in the red barn. ")
    damaged = await _learn(engine, "Otto keeps the kite in the white van. ")
    await engine.stop()
    assert damaged.version_after is not None
    _alter(path, damaged.version_after, "slow")
    again = toy_engine(path)
    await again.start()
    with pytest.raises(SessionConflict, match="failed its checks and was set aside"):
        await _chat(again)
    receipt = await _chat(again)
    assert receipt.turn == intact.turn + 1
    assert receipt.restored_from == "store"
    await again.stop()


@pytest.mark.anyio
async def test_a_session_of_another_model_is_refused_and_stays_usable_with_its_own(tmp_path: Path) -> None:
    """Other slow weights are another fingerprint: the turn is StateIncompatible, and the state is as it was."""
    path = tmp_path / "store.db"
    engine = toy_engine(path)
    await engine.start()
    before = await _learn(engine, "Mira keeps the violin in the red barn. ")
    other = _engine_of_another_model(path)
    await other.start()
    with pytest.raises(StateIncompatible, match="another model"):
        await _chat(other)
    await other.stop()
    after = await _chat(engine)
    assert after.version_before == before.version_after
    await engine.stop()


def _engine_of_another_model(path: Path) -> Engine:
    params = make_params(torch.float32, seed=1)
    return assemble(toy_settings(path), SERVED, params, make_tokenizer(), "other-weights")
