"""Slow matrices in bfloat16: sessions learn, come back bit for bit, and read nearly the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from taking import chat, learn, stored_state
from toys import SERVED, family_params, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.turn import ScoreRequest

pytestmark = pytest.mark.anyio

TEXT = "Mira keeps the violin in the red barn. " * 4


def _engine(path: Path, *, is_rounded: bool = True) -> Engine:
    params = family_params(SERVED, torch.float32)
    return toy_engine(path, params=params.rounded(torch.bfloat16, with_head=False) if is_rounded else params)


async def test_a_restart_between_turns_changes_no_bit(tmp_path: Path) -> None:
    """The same turns with a new process in between give the same state."""
    one, first = _engine(tmp_path / "one.db"), _engine(tmp_path / "two.db")
    await one.start()
    await first.start()
    for engine in (one, first):
        assert (await learn(engine, TEXT)).receipt.steps > 0
    await first.stop()
    second = _engine(tmp_path / "two.db")
    await second.start()
    for engine in (one, second):
        await chat(engine, "Where is the violin?")
    assert await stored_state(one) == await stored_state(second)
    await one.stop()
    await second.stop()


async def test_what_is_read_differs_by_rounding_alone(tmp_path: Path) -> None:
    """Scores of an untaught model lie close to those of exact weights, and are not the same."""
    found = []
    for is_rounded in (True, False):
        engine = _engine(tmp_path / f"{is_rounded}.db", is_rounded=is_rounded)
        await engine.start()
        found += await engine.score(ScoreRequest((" red barn", " blue van"), prompt="Mira keeps the violin in the"))
        await engine.stop()
    rounded, exact = found[:2], found[2:]
    for one, other in zip(rounded, exact, strict=True):
        assert one.logprob != other.logprob
        assert one.logprob / one.num_tokens == pytest.approx(other.logprob / other.num_tokens, abs=0.05)
