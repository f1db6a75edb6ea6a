"""What cannot be served is refused with the reason, and never by a memory that is silently fresh."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_process import LONGEST, Ask, EngineProcess
from test_parity import prompts
from toy_models import toy_config, toy_params, write_toy

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine

PROMPT = list(range(20))


@pytest.mark.parametrize(
    ("ask", "code", "words"),
    [
        (Ask(PROMPT, "x", extra={"stop": ["a"], "detokenize": True}), "turn_unsupported", "stop_token_ids"),
        (Ask(PROMPT, "x" * 300), "invalid_request", "1 to 256"),
        (Ask(PROMPT, "x\0y"), "invalid_request", "NUL"),
        (Ask(PROMPT, "x", mode="off"), "invalid_request", "hope_memory"),
        (Ask(PROMPT * 25 + PROMPT[:11], "x", max_tokens=1), "turn_unsupported", "510"),
    ],
    ids=["stop strings", "long name", "bad name", "unknown mode", "long prompt"],
)
def test_a_turn_that_cannot_be_kept_is_refused(engine: EngineProcess, ask: Ask, code: str, words: str) -> None:
    """It ends with an error before its first token; the store knows nothing of it."""
    reply = engine.ask(ask)[0]

    assert reply.finish == "error" and reply.tokens == []
    assert f'"{code}"' in reply.stop_reason and words in reply.stop_reason
    assert reply.version_in_store is None


def test_several_replies_are_refused(engine: EngineProcess) -> None:
    """`n` of 2 would be two turns at once."""
    reply = engine.ask(Ask(PROMPT, "several", extra={"n": 2}))[0]

    assert reply.finish == "error" and '"turn_unsupported"' in reply.stop_reason and "n = 1" in reply.stop_reason


def test_another_models_session_is_refused(
    toy: tuple[HopeConfig, Params], toy_folder: Path, tmp_path: Path, engine: EngineProcess, store: Path
) -> None:
    """A replica with other weights on the same store refuses the session, and leaves it to its own model."""
    first, second = prompts(80, (30, 30))
    kept = engine.ask(Ask(first, "theirs"))[0]
    other = write_toy(tmp_path / "other", toy[0], toy_params(toy[0], seed=9), "toy-9")
    with EngineProcess(other, store) as replica:
        refused = replica.ask(Ask(second, "theirs"), Ask(second, "own"))

    assert refused[0].finish == "error" and '"state_incompatible"' in refused[0].stop_reason
    assert refused[0].version_in_store == kept.version_in_store and refused[0].tokens == []
    assert refused[1].finish == "length"
    assert engine.ask(Ask(second, "theirs"))[0].finish == "length"
    assert '"state_incompatible"' in engine.ask(Ask(second, "own"))[0].stop_reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enable_prefix_caching": True}, "--no-enable-prefix-caching"),
        ({"scheduler_cls": None}, "--scheduler-cls"),
        ({"kv_transfer_config": None, "scheduler_cls": None}, "--kv-transfer-config"),
        ({"session_options": {"durability": "none"}}, "commit, fsync or replicated:N"),
        ({"session_options": {"window": 512}}, "unknown window"),
        ({"session_options": {"store": "postgres://x"}}, "not served"),
    ],
    ids=["prefix caching", "scheduler", "connector", "durability", "unknown option", "store"],
)
def test_an_engine_that_would_lose_memories_does_not_start(
    toy_folder: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    """The start ends with what is wrong and the option to add."""
    with pytest.raises(RuntimeError, match=words):
        EngineProcess(toy_folder, tmp_path / "sessions.db", **options)


def test_levels_are_refused(tmp_path: Path) -> None:
    """A model with levels of the Continuum Memory System is not even written for vLLM."""
    from dataclasses import replace

    from hope_server.errors import CheckpointError
    from hope_server.model.config import LevelSpec

    config = replace(toy_config(), levels=(LevelSpec("fast", (1,), schedule="online", update_period=16),))

    with pytest.raises(CheckpointError, match=r"levels.*\(fast\).*0017"):
        write_toy(tmp_path, config, toy_params(toy_config()))


def test_the_limits_are_those_of_the_engine() -> None:
    """The lengths above are told from the engine's own limit."""
    assert len(PROMPT) * 25 + 11 == LONGEST - 1
