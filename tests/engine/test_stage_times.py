"""Where the engine says a turn's time went."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from toys import KEY, Bench, scripted, toy_engine

from hope_server.engine.run import Rehearsal, Run
from hope_server.engine.turn import ChatRequest, Message, SamplingParams, TurnFinished
from hope_server.telemetry import Stage, StageTime, TurnLedger, turn_ledger


@pytest.fixture
def anyio_backend() -> str:
    """Run the asynchronous tests on asyncio, which is what the engine runs on."""
    return "asyncio"


def stages_of(run: Run) -> dict[Stage, StageTime]:
    """The stages that a run has had."""
    return run.ledger.close(lambda stage, found: None)


def test_reading_without_learning_is_prefill() -> None:
    """A turn that does not learn reads its prompt in the stage prefill, and draws tokens in decode."""
    bench = Bench()
    run = bench.run(range(20), learns=False, generation=scripted(bench, [1, 2, 3]))
    bench.finish(run)

    assert list(stages_of(run)) == ["queue", "prefill", "decode"]


def test_a_chunk_that_teaches_is_learned() -> None:
    """Of 20 tokens two whole chunks of 8 are learned, in one pass with reading them; the rest is read only."""
    bench = Bench(is_automatic=False)
    run = bench.run(range(20))
    bench.finish(run)

    assert list(stages_of(run)) == ["queue", "prefill", "learn"]


def test_chunks_that_teach_nothing_are_prefill() -> None:
    """Text that a turn with memory reads and must not learn counts as read."""
    bench = Bench(is_automatic=False)
    run = bench.run([])
    run.feed.extend(replace(each, source=None) for each in bench.run(range(16)).feed)
    bench.finish(run)

    assert list(stages_of(run)) == ["queue", "prefill"]


def test_a_consolidation_that_the_turn_waits_for_is_learning() -> None:
    """Text that no online chunk learned is studied at the turn's end, in the stage learn, after it was read."""
    bench = Bench(is_automatic=False)
    tokens = bench.tokenizer.encode("Mira.")
    run = bench.run(tokens, rehearsal=Rehearsal(2))
    bench.finish(run)
    found = stages_of(run)

    assert run.stats.steps > 0
    assert list(found) == ["queue", "prefill", "learn"]
    assert found["learn"].began >= found["prefill"].ended


def test_replies_that_decode_together_count_their_time_once() -> None:
    """Two replies to one request share a ledger, and a batch in which both decode is added once."""
    bench = Bench()
    ledger = TurnLedger()
    runs = [
        bench.run(range(9), learns=False, index=index, ledger=ledger, generation=scripted(bench, [1, 2, 3]))
        for index in range(2)
    ]
    for run in runs:
        bench.runner.seat(run)
        bench.runner.read(run)
    added: list[str] = []
    original = TurnLedger.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TurnLedger, "add", lambda self, stage, *rest: (added.append(stage), original(self, stage, *rest)))
        bench.runner.decode(runs)

    assert added == ["decode"]


@pytest.mark.anyio
async def test_a_turn_in_a_stored_session_has_every_stage(tmp_path: Path) -> None:
    """A session that must be fetched from the store is restored, and committed again, with the bytes of both."""
    for word in ("violin", "drum"):
        asked = ChatRequest((Message("user", f"Mira keeps a {word}."),), SamplingParams(max_tokens=3, seed=1), KEY)
        engine = toy_engine(tmp_path / "store.db")
        await engine.start()
        token = turn_ledger.set(TurnLedger())
        events = [event async for event in engine.chat(asked)]
        found = turn_ledger.get().close(lambda stage, time: None)
        turn_ledger.reset(token)
        await engine.stop()

    assert isinstance(events[-1], TurnFinished)
    assert events[-1].receipt.restored_from == "store"
    assert list(found) == ["gate", "queue", "restore", "prefill", "decode", "learn", "commit"]
    assert found["restore"].num_bytes > 1_000
    assert found["commit"].num_bytes > 1_000
    assert found["gate"].began <= found["queue"].began <= found["restore"].ended <= found["prefill"].ended
    assert found["decode"].ended <= found["commit"].began


@pytest.mark.anyio
async def test_a_turn_waits_behind_its_sessions_other_turn(tmp_path: Path) -> None:
    """What the second of two turns of one session waits is in its stage gate, not in queue."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()

    async def chat(word: str) -> dict[Stage, StageTime]:
        ledger = TurnLedger()
        turn_ledger.set(ledger)
        asked = ChatRequest((Message("user", word),), SamplingParams(max_tokens=30, seed=1), KEY)
        async for _ in engine.chat(asked):
            pass
        return ledger.close(lambda stage, time: None)

    first, second = await asyncio.gather(chat("one"), chat("two"))
    await engine.stop()

    assert second["gate"].seconds > first["decode"].seconds / 2 > second["queue"].seconds / 10
    assert second["gate"].ended >= first["commit"].ended


def test_idle_consolidation_is_counted_apart(tmp_path: Path) -> None:
    """The engine's numbers tell the seconds and steps that no turn waited for."""

    async def use() -> dict[str, float]:
        engine = toy_engine(tmp_path / "store.db")
        await engine.start()
        text = "Mira keeps a violin in the red barn. Otto keeps a drum."
        async with asyncio.timeout(60):
            # Only a turn that ends between a block's end and where its consolidation takes effect leaves any over.
            for length in itertools.cycle(range(16)):
                asked = ChatRequest((Message("user", text + "." * length),), SamplingParams(max_tokens=1), KEY)
                async for _ in engine.chat(asked):
                    pass
                await asyncio.sleep(0.05)
                if engine.stats()["idle_consolidation_steps_total"]:
                    break
        stats = engine.stats()
        await engine.stop()
        return stats

    stats = asyncio.run(use())

    assert stats["idle_consolidation_seconds_total"] > 0.0
    assert stats["engine_busy_seconds_total"] > 0.0
    assert (stats["slots_busy"], stats["slots_hot"]) == (0.0, 1.0)
    assert stats["slot_state_bytes"] > 100_000
