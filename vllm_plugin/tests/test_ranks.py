"""Tensor parallelism: ranks compute their heads alone, and what they store is anybody's to go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_process import Ask, EngineProcess, Reply
from reference import Session
from test_parity import LARGEST_DIFFERENCE, NAMES, prompts

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine


def test_two_ranks_are_one(toy: tuple[HopeConfig, Params], toy_folder: Path, tmp_path: Path) -> None:
    """Turns by one rank, then two, then one again, on the same store, are the turns of our own model.

    Beside them each answers the same plain requests greedily: with the same tokens, as likely.
    """
    asked = [prompts(60 + turn, (70, 21, 40, 9)) for turn in range(3)]
    sessions = [Session(*toy) for _ in NAMES]
    plain: list[list[Reply]] = []
    for turn, num_ranks in enumerate((1, 2, 1)):
        options = {} if num_ranks == 1 else {"tensor_parallel_size": num_ranks}
        with EngineProcess(toy_folder, tmp_path / "sessions.db", **options) as engine:
            replies = engine.ask(*(Ask(prompt, name, 12) for prompt, name in zip(asked[turn], NAMES, strict=True)))
            plain.append(engine.ask(*(Ask(prompt, None, 12, 0.0) for prompt in asked[0])))
        found = [
            session.largest_difference(prompt, reply.tokens, reply.logprobs)
            for session, prompt, reply in zip(sessions, asked[turn], replies, strict=True)
        ]
        print(f"turn {turn}, {num_ranks} ranks: largest difference of log-probabilities {max(found):.1e}")
        assert max(found) <= LARGEST_DIFFERENCE
    one, two, _ = plain
    assert [reply.tokens for reply in one] == [reply.tokens for reply in two]
    pairs = zip(one, two, strict=True)
    largest = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours.logprobs, theirs.logprobs, strict=True))
    print(f"one rank and two: largest difference of log-probabilities {largest:.1e}")
    assert largest <= LARGEST_DIFFERENCE
