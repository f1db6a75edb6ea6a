"""Defining test 5: the slow weights have the same hash before and after traffic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import KEY, make_params, toy_engine

from hope_server.engine.turn import ChatRequest, LearnRequest, Message, SamplingParams, ScoreRequest


@pytest.mark.anyio
async def test_traffic_does_not_write_the_slow_weights(tmp_path: Path) -> None:
    """Chats, learning, consolidation and scoring leave every slow weight and every initial memory as it was."""
    params = make_params(torch.float32)
    before = params.digest()
    engine = toy_engine(tmp_path / "store.db", params=params)
    await engine.start()
    text = "Mira keeps the violin in the red barn. Otto sleeps in the shed. " * 3
    learned = [event async for event in engine.learn(LearnRequest(KEY, text))][-1]
    for session in (KEY, None):
        request = ChatRequest((Message("user", "Where is it?"),), SamplingParams(max_tokens=40, seed=1), session)
        assert [event async for event in engine.chat(request)]
    await engine.score(ScoreRequest((" red",), prompt="the", session=KEY))
    await engine.stop()
    assert learned.receipt.update_norm.keys() == {"fast", "slow"}
    assert params.digest() == before
    assert make_params(torch.float32, seed=1).digest() != before
