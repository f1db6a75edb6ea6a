"""The plugin computes what our own model computes: alone, in batches, in pieces, preempted, and from turn to turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_process import Ask, EngineProcess, Reply
from reference import Session
from toy_models import toy_config, toy_params, write_toy

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine

LARGEST_DIFFERENCE = 1e-4
"""Of log-probabilities, in nats. Both sides compute in float32; their attention adds up in other orders."""
CONTROL = 100 * LARGEST_DIFFERENCE
LENGTHS = (150, 37, 81, 5)
NAMES = ("ada", "bo", "cy", "di")


def prompts(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    """Random prompts, some longer than a step."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 126, (length,), generator=generator).tolist() for length in lengths]


def differences(
    sessions: list[Session], asked: list[list[int]], replies: list[Reply], said: str, quantity: str = "turn"
) -> list[float]:
    """How far each reply is from its session's, which reads it; printed, as these figures are what is shown."""
    found = [
        session.largest_difference(prompt, reply.tokens, reply.logprobs)
        for session, prompt, reply in zip(sessions, asked, replies, strict=True)
    ]
    print(f"{said}: largest difference of log-probabilities {max(found):.1e}, smallest {min(found):.1e} ({quantity})")
    return found


@pytest.fixture(scope="module", params=["matrix", "mlp"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """A toy of each kind of memories, and an engine that has few pages, in steps of 64 tokens."""
    # Two-layer memories with all that a page can have or lack: momenta, and no tail of a convolution.
    is_mlp = request.param == "mlp"
    changes = {"memory": request.param, "has_momentum": is_mlp, "conv_size": 1 if is_mlp else 4}
    config = toy_config(**changes)
    params = toy_params(config, seed=1)
    place = tmp_path_factory.mktemp(request.param)
    folder = write_toy(place / "model", config, params, f"toy-{request.param}")
    with EngineProcess(folder, place / "sessions.db") as engine:
        yield config, params, engine


def test_four_sessions_at_once_say_what_each_says_alone(case: tuple[HopeConfig, Params, EngineProcess]) -> None:
    """Three turns of four sessions in one batch, prompts cut into steps: our model's log-probabilities.

    With empty memories, or without them, they are at least a hundred times as far away.
    """
    config, params, engine = case
    sessions = [Session(config, params) for _ in NAMES]
    for turn in range(3):
        asked = prompts(turn)
        replies = engine.ask(*(Ask(prompt, name) for prompt, name in zip(asked, NAMES, strict=True)))
        assert {reply.finish for reply in replies} == {"length"}
        assert max(differences(sessions, asked, replies, f"turn {turn}")) <= LARGEST_DIFFERENCE
        fresh = [Session(config, params) for _ in NAMES]
        off = [Session(config, params, is_on=False) for _ in NAMES]
        if turn:
            assert min(differences(fresh, asked, replies, f"turn {turn}", "control: empty memory")) >= CONTROL
        assert min(differences(off, asked, replies, f"turn {turn}", "control: memory off")) >= CONTROL
        numbers = [reply.receipt["num_tokens"] for reply in replies if reply.receipt]
        # The last token of each reply was read, too.
        assert numbers == [session.num_tokens for session in sessions]


def test_a_request_without_a_session_begins_with_nothing(case: tuple[HopeConfig, Params, EngineProcess]) -> None:
    """It is a session that has seen nothing, in a page that others used before; one of a single token, too."""
    config, params, engine = case
    asked = [*prompts(7, (40, 3)), [5]]

    replies = engine.ask(*(Ask(prompt) for prompt in asked))

    assert [reply.receipt for reply in replies] == [None] * 3
    fresh = [Session(config, params) for _ in asked]
    assert max(differences(fresh, asked, replies, "without a session")) <= LARGEST_DIFFERENCE


@pytest.fixture(scope="module")
def crowded(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with too few pages for four turns at once."""
    with EngineProcess(
        toy_folder, tmp_path_factory.mktemp("crowded") / "sessions.db", num_gpu_blocks_override=17
    ) as engine:
        yield engine


def test_preempted_turns_are_the_same(toy: tuple[HopeConfig, Params], crowded: EngineProcess) -> None:
    """Turns that lose their pages and begin anew say and learn what they would have anyway."""
    sessions = [Session(*toy) for _ in NAMES]
    for turn in range(2):
        asked = prompts(20 + turn, (150, 120, 81, 90))
        replies = crowded.ask(*(Ask(prompt, name, 60) for prompt, name in zip(asked, NAMES, strict=True)))
        assert max(differences(sessions, asked, replies, f"preempted, turn {turn}")) <= LARGEST_DIFFERENCE
    assert crowded.num_preemptions() >= 2


def test_a_rounded_network_has_memories_that_are_not(
    toy: tuple[HopeConfig, Params], toy_folder: Path, tmp_path: Path
) -> None:
    """In bfloat16 sessions still know what they were told: far nearer to themselves than to empty memories.

    bfloat16 keeps 8 bits of a number; three blocks of it move log-probabilities by hundredths.
    """
    sessions = [Session(*toy) for _ in NAMES]
    with EngineProcess(toy_folder, tmp_path / "sessions.db", dtype="bfloat16") as engine:
        for turn in range(2):
            asked = prompts(30 + turn)
            replies = engine.ask(*(Ask(prompt, name) for prompt, name in zip(asked, NAMES, strict=True)))
            found = max(differences(sessions, asked, replies, f"bfloat16, turn {turn}"))
            assert found <= 0.1
    fresh = [Session(*toy) for _ in NAMES]
    assert min(differences(fresh, asked, replies, "bfloat16", "control: empty memory")) >= 1.5 * found
