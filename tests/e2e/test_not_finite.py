"""A value that is not finite in an update discards the turn's learning, says so, and harms nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toys import KEY, toy_engine

from hope_server.engine.consolidation import Consolidation
from hope_server.engine.engine import Engine
from hope_server.engine.learner import ChunkGradients, Learner
from hope_server.engine.turn import LearnRequest, Receipt, ScoreRequest, TurnFinished

TEXT = "Mira keeps the violin in the red barn. Otto sleeps in the shed. "


async def _learn(engine: Engine, text: str) -> Receipt:
    last = [event async for event in engine.learn(LearnRequest(KEY, text))][-1]
    assert isinstance(last, TurnFinished)
    assert last.receipt is not None
    return last.receipt


async def _from_weights(engine: Engine) -> list[object]:
    return list(await engine.score(ScoreRequest((" red barn",), prompt="Mira keeps", session=KEY, window=False)))


def _spoil_online(patch: pytest.MonkeyPatch) -> None:
    honest = Learner.gradients

    def spoiled(self: Learner, *args: object) -> ChunkGradients:
        found = honest(self, *args)  # type: ignore[arg-type]
        for gradient in found.levels.values():
            gradient[0, 0] = float("nan")
        return found

    patch.setattr(Learner, "gradients", spoiled)


def _spoil_consolidation(patch: pytest.MonkeyPatch) -> None:
    honest = Consolidation._gradient

    def spoiled(self: Consolidation, *args: object) -> tuple[torch.Tensor, float]:
        gradient, loss = honest(self, *args)  # type: ignore[arg-type]
        return (gradient * float("inf") if self.num_done == 2 else gradient), loss

    patch.setattr(Consolidation, "_gradient", spoiled)


@pytest.mark.anyio
@pytest.mark.parametrize("spoil", [_spoil_online, _spoil_consolidation], ids=["online", "consolidation"])
async def test_the_turn_is_kept_and_its_learning_is_not(tmp_path: Path, spoil) -> None:
    """The receipt names the reason, memories are those before the turn, and the next turn learns again."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    first = await _learn(engine, TEXT)
    before = await _from_weights(engine)
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch)
        spoiled = await _learn(engine, TEXT * 2)
    assert spoiled.discarded is not None
    assert "not finite" in spoiled.discarded
    assert spoiled.tokens_learned == 0
    assert spoiled.tokens_read == 2 * len(TEXT)
    assert spoiled.version_after not in (None, first.version_after)
    assert await _from_weights(engine) == before
    after = await _learn(engine, TEXT)
    assert after.discarded is None
    assert after.tokens_learned == len(TEXT) - 1
    assert await _from_weights(engine) != before
    await engine.stop()
