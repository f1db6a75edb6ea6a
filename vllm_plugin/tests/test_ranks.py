"""Tensor parallelism: ranks compute their heads alone, and what they store is anybody's to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_process import Ask, EngineProcess
from reference import Session
from test_parity import LARGEST_DIFFERENCE, NAMES, prompts

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine


def test_two_ranks_are_one(toy: tuple[HopeConfig, Params], toy_folder: Path, tmp_path: Path) -> None:
    """Turns by one rank, then two, then one again, on the same store, are the turns of our own model.

    Greedy replies of two ranks to what one rank has just answered in another store are the same tokens.
    """
    asked = [prompts(60 + turn, (70, 21, 40, 9)) for turn in range(3)]
    sessions = [Session(*toy) for _ in NAMES]
    alone: list[list[int]] = []
    for turn, num_ranks in enumerate((1, 2, 1)):
        options = {} if num_ranks == 1 else {"tensor_parallel_size": num_ranks}
        with EngineProcess(toy_folder, tmp_path / "sessions.db", **options) as engine:
            asks = [Ask(prompt, name, 12, 0.0) for prompt, name in zip(asked[turn], NAMES, strict=True)]
            replies = engine.ask(*asks)
            fresh = engine.ask(*(Ask(prompt, None, 12, 0.0) for prompt in asked[0]))
        found = [
            session.largest_difference(prompt, reply.tokens, reply.logprobs)
            for session, prompt, reply in zip(sessions, asked[turn], replies, strict=True)
        ]
        print(f"turn {turn}, {num_ranks} ranks: largest difference of log-probabilities {max(found):.1e}")
        assert max(found) <= LARGEST_DIFFERENCE
        alone.append([token for reply in fresh for token in reply.tokens])
        difference = max(
            abs(ours - theirs)
            for one, other in zip(fresh, replies if turn == 0 else fresh, strict=True)
            for ours, theirs in zip(one.logprobs, other.logprobs, strict=True)
        )
        assert difference <= LARGEST_DIFFERENCE
    assert alone[0] == alone[1] == alone[2]
