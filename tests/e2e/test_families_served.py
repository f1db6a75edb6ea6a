"""Every family through the engine: split-invariant, exact after a restart, isolated, untouched where it only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hope_memory.codec import decode_level, encode_level
from hope_memory.snapshot import Snapshot
from taking import chat, chat_request, end_of, learn, stored_state, take, text_of
from toys import FAMILIES, KEY, Bench, family_params, make_tokenizer, scripted, toy_engine

from hope_server.engine.engine import Engine
from hope_server.engine.run import Run
from hope_server.engine.state_codec import TITANS
from hope_server.engine.turn import ChatRequest, Message, SamplingParams, Score, ScoreRequest, SessionKey
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.model.hope import HopeModel
from hope_server.model.state import empty_state

TOKENS = make_tokenizer().encode("Mira has a red cat. It sleeps! Otto (who is 9) keeps 2 dogs.\nAnd so on: one, two.")
WITH_TITANS = tuple(name for name, config in FAMILIES.items() if config.titans is not None)
SERVED = ("hope", "hope, online levels", "hope, all levels", "retrofit")
families = pytest.mark.parametrize("name", SERVED)
every = pytest.mark.parametrize("name", WITH_TITANS)


def assert_same_memories(left: Bench, left_slot: int, right: Bench, right_slot: int) -> None:
    """Everything that was written, bit for bit; the unfinished chunk but for the rounding of other batch shapes."""
    ours, theirs = left.pool.row(left_slot), right.pool.row(right_slot)
    pending = int(ours.window.positions[0]) % left.config.chunk_size
    expected = theirs.tensors()
    for name, tensor in ours.tensors().items():
        wanted = expected[name]
        if name.startswith("titans") and name.endswith((".keys", ".values", ".rates")):
            tensor, wanted = tensor[:, :, :pending], wanted[:, :, :pending]
        elif name in ("pending.tokens", "pending.teaches"):
            tensor, wanted = tensor[:, :pending], wanted[:, :pending]
        if name.startswith("level") or ".memory." in name or ".surprise." in name or name.endswith("tail_start"):
            assert torch.equal(tensor, wanted), name
        else:
            # Float64 products of other shapes: rounding, nothing more.
            torch.testing.assert_close(tensor, wanted, rtol=0, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}")


@every
def test_memory_does_not_depend_on_how_the_text_came(name: str) -> None:
    """Read at once, in uneven turns, and token by token through decode: every memory ends the same, bit for bit."""
    whole, pieces, spoken = (Bench(config=FAMILIES[name]) for _ in range(3))
    one, many = whole.in_turns(TOKENS), pieces.in_turns(TOKENS, 1, 9, 37, 64)
    said = spoken.run(TOKENS[:5], generation=scripted(spoken, TOKENS[5:]), reply_source="user")
    spoken.turn(said)
    assert_same_memories(pieces, many.slot, whole, one.slot)
    assert_same_memories(spoken, said.slot, whole, one.slot)
    row = whole.pool.row(one.slot)
    assert all(level.num_writes.item() > 0 for level in row.levels.values())
    for block, titans in row.titans.items():
        initial = whole.model.memory.titans_initial[block]
        assert all(not torch.equal(tensor[0], initial[key]) for key, tensor in titans.memories.items())


def stored(snapshot: Snapshot) -> Snapshot:
    """A snapshot after its levels went through the store's bytes."""
    levels = {name: decode_level(encode_level(level)) for name, level in snapshot.levels.items()}
    return Snapshot(snapshot.fingerprint, snapshot.meta, levels)


def as_bytes(snapshot: Snapshot) -> dict[str, bytes]:
    """Every level of a snapshot as it is stored."""
    return {name: bytes(encode_level(level)) for name, level in snapshot.levels.items()}


@every
@pytest.mark.parametrize("first", [5, 8, 44])
def test_a_restored_session_goes_on_as_if_it_had_never_stopped(name: str, first: int) -> None:
    """Stored at a chunk's end or in the middle of one, in float32: what follows is the same to the bit, logits too."""
    going, stopped, restarted = (Bench(config=FAMILIES[name], dtype=torch.float32) for _ in range(3))
    going.turn(going.run(TOKENS[:first]), "v1")
    half = stopped.turn(stopped.run(TOKENS[:first]), "v1")
    said = TOKENS[-9:]
    expected_run = going.run(TOKENS[first:60], version="v1", generation=scripted(going, said))
    expected = going.turn(expected_run, "v2")
    actual_run = restarted.run(
        TOKENS[first:60], version="v1", snapshot=stored(half.snapshot), generation=scripted(restarted, said)
    )
    actual = restarted.turn(actual_run, "v2")
    assert (actual_run.stats.restored_from, expected_run.stats.restored_from) == ("store", "hot")
    assert as_bytes(actual.snapshot) == as_bytes(expected.snapshot)
    assert actual.snapshot.meta == expected.snapshot.meta
    assert TITANS in actual.snapshot.levels
    for ours, theirs in zip(actual_run.generation.sampler.seen, expected_run.generation.sampler.seen, strict=True):
        assert torch.equal(ours, theirs)


@every
def test_of_an_unfinished_chunk_only_its_tokens_are_stored(name: str) -> None:
    """At a chunk's end the memories and the convolution's tail; inside one, as many places as tokens wait."""
    for first, waiting in ((16, 0), (21, 5)):
        bench = Bench(config=FAMILIES[name])
        arrays = bench.turn(bench.run(TOKENS[:first])).snapshot.levels[TITANS].arrays
        places = {array.shape[1] for key, array in arrays.items() if key.endswith((".keys", ".values", ".rates"))}
        assert places == {waiting}


@every
def test_a_turn_that_only_reads_advances_a_copy(name: str) -> None:
    """Memories written in a reading turn are that turn's own: the session's slot and its next turn know nothing."""
    bench, untouched = Bench(config=FAMILIES[name]), Bench(config=FAMILIES[name])
    for each in (bench, untouched):
        learned = each.run(TOKENS[:20])
        each.turn(learned, "v1")
    before = {key: tensor.clone() for key, tensor in bench.pool.row(learned.slot).tensors().items()}
    reading = bench.run(TOKENS[20:45], version="v1", learns=False, generation=scripted(bench, TOKENS[45:50]))
    bench.runner.seat(reading)
    copy = bench.pool.row(reading.slot)
    assert reading.slot != learned.slot
    bench.finish(reading)
    first = next(iter(copy.titans))
    assert not torch.equal(copy.titans[first].tail_start, before[f"titans.{first}.tail_start"]), (
        "the copy has read past a chunk's end"
    )
    after = bench.pool.row(learned.slot).tensors()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    ours, theirs = bench.run(TOKENS[20:], version="v1"), untouched.run(TOKENS[20:], version="v1")
    assert as_bytes(bench.turn(ours, "v2").snapshot) == as_bytes(untouched.turn(theirs, "v2").snapshot)


@families
def test_a_reading_turn_predicts_what_a_learning_turn_does(name: str) -> None:
    """Both read the same memories: the logits after a text are the same where no level is written in between."""
    bench = Bench(config=replace(FAMILIES[name], levels=()))
    for stop in (7, 8, 30):
        found = []
        for learns in (True, False):
            run = bench.run(TOKENS[:stop], learns=learns, generation=scripted(bench, TOKENS[stop : stop + 12]))
            bench.finish(run)
            found.append(run.generation.sampler.seen)
            bench.runner.drop(run)
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@every
def test_turns_that_run_together_end_as_if_each_were_alone(name: str) -> None:
    """Two sessions of different length, decoded in one batch across chunk ends, keep to themselves."""
    together = Bench(config=FAMILIES[name])
    texts = {"a": TOKENS[:13], "b": TOKENS[30:60]}

    def turn_of(bench: Bench, key: str) -> Run:
        said = scripted(bench, TOKENS[60:80])
        return bench.run(texts[key], key=SessionKey("t", key), generation=said)

    joint = [turn_of(together, key) for key in texts]
    together.finish(*joint)
    for run, key in zip(joint, texts, strict=True):
        alone = Bench(config=FAMILIES[name])
        lonely = turn_of(alone, key)
        alone.finish(lonely)
        for ours, theirs in zip(run.generation.sampler.seen, lonely.generation.sampler.seen, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert_same_memories(together, run.slot, alone, lonely.slot)


def test_a_reset_of_the_titans_memories_leaves_the_rest() -> None:
    """Memories are new, the unfinished chunk is read into them again, window and levels stay as they are."""
    bench = Bench(config=FAMILIES["retrofit"])
    bench.turn(bench.run(TOKENS[:45]), "v1")
    reset = bench.run([], version="v1", resets=(TITANS,), kind=None)
    before = {key: tensor.clone() for key, tensor in bench.pool.row(0).tensors().items()}
    bench.turn(reset, "v2")
    row = bench.pool.row(reset.slot)
    memory = bench.model.memory
    for block, titans in row.titans.items():
        assert all(torch.equal(titans.memories[key][0], tensor) for key, tensor in memory.titans_initial[block].items())
        assert torch.equal(titans.tail, before[f"titans.{block}.tail"]) == (block == 1)
        assert bool(titans.rates[:, :, : 45 % 8].any())
    for key, tensor in row.tensors().items():
        if key.startswith("level") or key in ("window.positions", "pending.tokens"):
            assert torch.equal(tensor, before[key]), key
    assert int(row.window.positions[0]) == 45
    fresh = bench.run(TOKENS[45:], version="v2")
    bench.turn(fresh, "v3")
    assert all(bool((tensor != memory.titans_initial[1][key]).any()) for key, tensor in row.titans[1].memories.items())


# -- through the engine ----------------------------------------------------------------------------------------------


def served(name: str) -> HopeConfig:
    """A toy's config with room for the template."""
    return replace(FAMILIES[name], window=WindowSpec(320, 2, "bfloat16"))


async def started(tmp_path: Path, name: str, **changes: object) -> Engine:
    """A running toy engine."""
    engine = toy_engine(tmp_path / "store.db", served(name), **({"passes_learn": 1, "passes_user": 1} | changes))
    await engine.start()
    return engine


async def scores(engine: Engine, key: SessionKey = KEY, *, window: bool = True) -> Sequence[Score]:
    """What a session thinks of two continuations."""
    return await engine.score(ScoreRequest((" red barn.", " hotel"), prompt="Mira keeps", session=key, window=window))


@pytest.mark.anyio
@families
async def test_a_fork_and_its_parent_do_not_see_each_others_writes(tmp_path: Path, name: str) -> None:
    """Whichever learns on, the other answers exactly as before, hot or freshly loaded by another server."""
    engine = await started(tmp_path, name)
    await learn(engine, "Mira keeps the violin in the red barn. Otto sleeps.")
    await engine.fork_session(KEY, "fork")
    fork = SessionKey(KEY.tenant, "fork")
    before = await scores(engine, fork)
    assert await scores(engine) == before
    await learn(engine, "Mira keeps the passport in the hotel. Nobody knows why.")
    assert await scores(engine, fork) == before
    assert await scores(engine) != before
    await engine.stop()
    again = await started(tmp_path, name)
    assert await scores(again, fork) == before
    await again.stop()


@pytest.mark.anyio
@families
async def test_a_session_lives_on_in_another_store(tmp_path: Path, name: str) -> None:
    """Exported in the middle of a chunk, imported elsewhere: the same words, and the same state after them."""
    engine = await started(tmp_path, name)
    learned = await learn(engine, "Mira keeps the violin in the red barn.")
    assert learned.receipt.tokens_read % 8 != 0
    _, data = await engine.export_session(KEY)
    other = await started(tmp_path / "other", name)
    await other.import_session(KEY, data)
    here, there = [await take(each.chat(chat_request("Where is it?"))) for each in (engine, other)]
    assert text_of(here) == text_of(there)
    assert end_of(here).receipt.loss_before == end_of(there).receipt.loss_before
    assert await stored_state(engine) == await stored_state(other)
    await engine.stop()
    await other.stop()


@pytest.mark.anyio
@families
async def test_traffic_writes_no_slow_weight(tmp_path: Path, name: str) -> None:
    """Learning, chats with and without a session, and scores leave slow weights and initial memories as they were."""
    params = family_params(FAMILIES[name], torch.float32)
    before = params.digest()
    engine = await started(tmp_path, name, params=params)
    await learn(engine, "Mira keeps the violin in the red barn. Otto sleeps in the shed. " * 2)
    stateless = ChatRequest((Message("user", "Where is it?"),), SamplingParams(max_tokens=20, seed=1), None)
    first, second = [text_of(await take(engine.chat(stateless))) for _ in range(2)]
    assert first == second
    await chat(engine, "Where is it?", max_tokens=20)
    assert text_of(await take(engine.chat(stateless))) == first
    await scores(engine)
    await engine.stop()
    assert params.digest() == before


@pytest.mark.anyio
@families
async def test_without_the_window_memories_still_know(tmp_path: Path, name: str) -> None:
    """With an empty window a session's scores are neither those with it nor those of a session that read nothing."""
    engine = await started(tmp_path, name)
    await learn(engine, "Mira keeps the violin in the red barn. Otto sleeps in the shed.")
    bare = await scores(engine, window=False)
    assert bare == await scores(engine, window=False)
    assert bare != await scores(engine)
    await engine.create_session(SessionKey(KEY.tenant, "new"))
    assert bare != await scores(engine, SessionKey(KEY.tenant, "new"), window=False)
    reading = await chat(engine, "Where?", mode="read", window=False)
    assert reading.receipt.tokens_learned == 0
    assert bare == await scores(engine, window=False)
    await engine.stop()


@pytest.mark.anyio
@families
async def test_memory_is_reported_and_made_new_by_name(tmp_path: Path, name: str) -> None:
    """The memories are one level in the report, of bounded size, and a reset brings back those of a new session."""
    engine = await started(tmp_path, name)
    await learn(engine, "Mira keeps the violin in the red barn.")
    first = (await engine.session_memory(KEY))["levels"][TITANS]
    await learn(engine, "Otto sleeps in the shed, and that is all there is to say about it, said Mira to him.")
    second = (await engine.session_memory(KEY))["levels"][TITANS]
    assert first["schedule"] == "chunk"
    assert 0 < first["num_writes"] < second["num_writes"]
    assert first["norm"] > 0
    size = 320 if served(name).attention_blocks else 0
    assert (await engine.session_memory(KEY))["window"]["size"] == size
    model = HopeModel(served(name), torch.float32, family_params(FAMILIES[name], torch.float32))
    state = empty_state(model.memory, 1, torch.float32)
    most = sum(tensor.nbytes for titans in state.titans.values() for tensor in titans.tensors().values())
    assert 0 < first["num_bytes"] <= most
    assert 0 < second["num_bytes"] <= most
    bare = await scores(engine, window=False)
    await engine.reset_session(KEY, (TITANS,))
    assert (await engine.session_memory(KEY))["levels"][TITANS]["norm"] == 0
    assert await scores(engine, window=False) != bare
    await engine.reset_session(KEY)
    await engine.create_session(SessionKey(KEY.tenant, "new"))
    assert await scores(engine, window=False) == await scores(engine, SessionKey(KEY.tenant, "new"), window=False)
    await engine.stop()
