"""A session's row and log as a snapshot and back: exact at every position, and refused where a part does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hope_memory.snapshot import Array, Level, Snapshot
from toys import CONFIG, ROUNDED, SLOW, Bench, make_tokenizer

from hope_server.engine.run import FeedToken
from hope_server.engine.session_card import SessionCard
from hope_server.engine.session_log import SessionLog
from hope_server.engine.state_codec import export_row, import_row, kept_apart, model_fingerprint
from hope_server.engine.transcript import Conversation
from hope_server.errors import StateCorrupt
from hope_server.model.config import HopeConfig
from hope_server.model.state import FastState, empty_state

TEXT = make_tokenizer().encode("Otto keeps bees. They are brown!\n\nAnd he has 2 dogs: one and another. " * 4)
TALK = Conversation("c" * 32, ("c" * 16,), ("s1", "s2"), True, "e1")
CARD = SessionCard(True, 60.0, {"team": "blue"}, {"v1": "a" * 32})
LONG = replace(CONFIG, levels=(replace(CONFIG.levels[0], update_period=24), SLOW))


def read(
    num_tokens: int, config: HopeConfig = CONFIG, dtype: torch.dtype = torch.float64
) -> tuple[Bench, FastState, SessionLog]:
    """A session that has read this much, its state, and its log."""
    bench = Bench(config=config, dtype=dtype)
    run = bench.run(TEXT[:num_tokens], conversation=TALK, card=CARD)
    bench.turn(run)
    return bench, bench.pool.row(run.slot), run.log


def used(state: FastState) -> dict[str, torch.Tensor]:
    """A one-row state without what no later token can depend on: tokens behind the pending ones."""
    tensors = dict(state.tensors())
    pending = int(state.num_pending[0])
    for name in ("pending.tokens", "pending.teaches"):
        tensors[name] = tensors[name][:, :pending]
    return tensors


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8, 9, 16, 17, 23, 65, 74, 75, 131])
@pytest.mark.parametrize(
    ("config", "dtype"), [(CONFIG, torch.float64), (ROUNDED, torch.float32), (LONG, torch.float64)]
)
def test_a_state_comes_back_bit_for_bit(num_tokens: int, config: HopeConfig, dtype: torch.dtype) -> None:
    """Inside a chunk, between a block and its consolidation, after the ring went round: nothing is lost or rounded."""
    bench, state, log = read(num_tokens, config, dtype)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    back = empty_state(bench.model.memory, 2, dtype).rows(1, 2)
    for tensor in back.tensors().values():
        tensor.fill_(1)
    found = import_row(bench.model.memory, back, snapshot)
    expected = used(state)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in used(back).items())
    job = None if log.job is None else replace(log.job, runs=None)
    assert found == replace(log, job=job)
    assert (snapshot.fingerprint, found.position) == ("f", num_tokens)


def test_a_snapshot_does_not_share_memory_with_the_state() -> None:
    """What is written after the export is not in the snapshot."""
    bench, state, log = read(40)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    before = {name: {key: bytes(a.data) for key, a in level.arrays.items()} for name, level in snapshot.levels.items()}
    for tensor in state.tensors().values():
        tensor.fill_(1)
    after = {name: {key: bytes(a.data) for key, a in level.arrays.items()} for name, level in snapshot.levels.items()}
    assert before == after


def test_a_snapshot_that_is_kept_lets_go_of_what_it_was_read_from() -> None:
    """Its arrays are equal, also empty ones, and none is a view of the whole level that a store has read."""
    read = bytearray(range(32))
    view = memoryview(read)
    level = Level(
        {
            "floats": Array("float32", (2, 3), view[:24]),
            "flags": Array("bool", (2,), view[:2]),
            "none": Array("int32", (0, 4), view[24:24]),
        }
    )
    snapshot = Snapshot("fingerprint", {"info": {"turn": 3}}, {"window": level})
    kept = kept_apart(snapshot)
    assert kept == snapshot
    before = bytes(kept.levels["window"].arrays["floats"].data)
    read[:] = bytes(32)
    assert bytes(kept.levels["window"].arrays["floats"].data) == before != bytes(24)
    view.release()


def test_levels_that_were_never_written_are_not_stored() -> None:
    """A session that has only read a few tokens costs its window and its journal."""
    bench, state, log = read(5)
    snapshot, unchanged = export_row(bench.model.memory, state, log, "f", {})
    assert set(snapshot.levels) == {"window", "journal"}
    assert unchanged == frozenset()


def test_levels_not_written_since_the_parent_are_named() -> None:
    """The store may take their bytes from the parent commit; a level that accumulates changes without a write."""
    bench, state, log = read(40)
    writes = {name: int(level.num_writes[0]) for name, level in state.levels.items()}
    assert export_row(bench.model.memory, state, log, "f", writes)[1] == {"fast", "slow"}
    assert export_row(bench.model.memory, state, log, "f", writes | {"fast": 0})[1] == {"slow"}
    long, state, log = read(40, LONG)
    writes = {name: int(level.num_writes[0]) for name, level in state.levels.items()}
    assert export_row(long.model.memory, state, log, "f", writes)[1] == {"slow"}


def test_a_gradient_that_waits_for_its_period_is_stored() -> None:
    """A level that has accumulated but never written is part of the snapshot."""
    bench, state, log = read(9, LONG)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    assert "accumulator" in snapshot.levels["fast"].arrays
    assert state.levels["fast"].num_writes.item() == 0


def test_the_public_part_tells_sizes_and_counts() -> None:
    """What sessions are listed with: turn, tokens, and the bytes of every stored level."""
    bench, state, log = read(40)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    info = snapshot.meta["info"]
    assert (info["turn"], info["num_tokens"], info["tokens_learned"]) == (1, 40, 40)
    assert info["state_bytes"] == {name: level.num_bytes for name, level in snapshot.levels.items()}


NEW_INFO = ("answer_id", "marks", "resends", "epoch", "frozen", "ttl", "metadata", "tags", "turns")


def test_a_state_of_an_earlier_build_is_read() -> None:
    """What earlier builds did not write has its defaults: nothing is frozen, nothing expires, all levels learn all."""
    bench, state, log = read(43)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    assert "limits" not in snapshot.meta
    for name in NEW_INFO:
        del snapshot.meta["info"][name]
    found = import_row(bench.model.memory, empty_state(bench.model.memory, 1, torch.float64), snapshot)
    assert found.card == SessionCard()
    assert found.conversation == Conversation("c" * 32, ("c" * 16,), ("s1", "s2"))
    assert found.pending_levels == [None] * 3
    assert found.journal == log.journal


def test_restrictions_to_levels_come_back() -> None:
    """Pieces, the open sentence and pending tokens keep the levels that they may teach, in a few numbers."""
    bench = Bench(config=CONFIG)
    run = bench.run(())
    for place, token in enumerate(bench.tokenizer.encode("One. Two. Three. Four. Fi")):
        run.feed.append(FeedToken(token, "user", 2, ("slow",) if place < 16 else ("fast",)))
    bench.turn(run)
    snapshot, _ = export_row(bench.model.memory, bench.pool.row(run.slot), run.log, "f", {})
    assert snapshot.meta["limits"]["pieces"] == [[0, 2, ["slow"]], [3, 3, ["fast"]]]
    found = import_row(bench.model.memory, empty_state(bench.model.memory, 1, torch.float64), snapshot)
    assert found.journal == run.log.journal
    assert found.pending_levels == run.log.pending_levels == [("fast",)]


Damage = Callable[[dict, dict], None]


def _cut(levels: dict, name: str, key: str) -> None:
    array = levels[name].arrays[key]
    size = len(array.data) // array.shape[-1]
    shorter = Array(array.dtype, (*array.shape[:-1], 1), bytes(array.data)[:size])
    levels[name] = Level(levels[name].arrays | {key: shorter})


def _without(levels: dict, name: str, key: str) -> None:
    levels[name] = Level({other: array for other, array in levels[name].arrays.items() if other != key})


DAMAGES: dict[str, Damage] = {
    "no window": lambda _meta, levels: levels.pop("window"),
    "no journal": lambda _meta, levels: levels.pop("journal"),
    "no written level": lambda _meta, levels: levels.pop("slow"),
    "no keys": lambda _meta, levels: _without(levels, "window", "keys"),
    "no moment": lambda _meta, levels: _without(levels, "fast", "second_moment"),
    "short weights": lambda _meta, levels: _cut(levels, "slow", "weights"),
    "short keys": lambda _meta, levels: _cut(levels, "window", "keys"),
    "short journal": lambda _meta, levels: _cut(levels, "journal", "tokens"),
    "narrow pieces": lambda _meta, levels: _cut(levels, "journal", "pieces"),
    "no info": lambda meta, _levels: meta.pop("info"),
    "no turn": lambda meta, _levels: meta["info"].pop("turn"),
    "wrong turn": lambda meta, _levels: meta["info"].update(turn="third"),
    "wrong position": lambda meta, _levels: meta["info"].update(num_tokens=39),
    "position is text": lambda meta, _levels: meta["info"].update(num_tokens="many"),
    "negative position": lambda meta, _levels: meta["info"].update(num_tokens=-1),
    "no writes": lambda meta, _levels: meta.pop("writes"),
    "writes is a list": lambda meta, _levels: meta.update(writes=[1]),
    "writes of another model": lambda meta, _levels: meta.update(writes={"other": 1}),
    "too many pending": lambda meta, _levels: meta.update(pending=[1] * 9, teaches=[True] * 9),
    "pending without teaches": lambda meta, _levels: meta.update(teaches=[True]),
    "pending is text": lambda meta, _levels: meta.update(pending=["a", "b"]),
    "pending is nothing": lambda meta, _levels: meta.update(pending=None),
    "short journal meta": lambda meta, _levels: meta.update(journal=[0]),
    "no such source": lambda meta, _levels: meta["journal"].__setitem__(4, 9),
    "more consolidated than there is": lambda meta, _levels: meta["journal"].__setitem__(0, 99),
    "short job": lambda meta, _levels: meta.update(job=[1, 2]),
    "job is a number": lambda meta, _levels: meta.update(job=3),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_part_that_is_missing_or_misshaped_is_state_corrupt(name: str) -> None:
    """A snapshot whose parts do not belong together is refused in the service's own words, never restored by halves."""
    bench, state, log = read(43)
    snapshot, _ = export_row(bench.model.memory, state, log, "f", {})
    meta, levels = snapshot.meta, dict(snapshot.levels)
    DAMAGES[name](meta, levels)
    with pytest.raises(StateCorrupt, match="lacks or misshapes a part"):
        import_row(bench.model.memory, empty_state(bench.model.memory, 1, torch.float64), Snapshot("f", meta, levels))


def test_the_fingerprint_names_everything_that_a_state_depends_on() -> None:
    """Other weights, another window, other levels: another fingerprint; the same things: the same."""
    base = model_fingerprint(CONFIG, "digest")
    assert base == model_fingerprint(replace(CONFIG), "digest")
    others = [
        model_fingerprint(CONFIG, "other"),
        model_fingerprint(ROUNDED, "digest"),
        model_fingerprint(LONG, "digest"),
        model_fingerprint(replace(CONFIG, levels=CONFIG.levels[::-1]), "digest"),
        model_fingerprint(replace(CONFIG, chunk_size=4), "digest"),
    ]
    assert len({base, *others}) == 6


def test_what_later_builds_added_changes_no_fingerprint_where_it_is_not_used() -> None:
    """A config of the first build has the fingerprint that it had then; using something new gives another."""
    assert model_fingerprint(CONFIG, "digest") == "968b9ef244ad14ca733967eb42e9547c"
    residual = replace(CONFIG.levels[0], kind="residual")
    plain, shared = (replace(CONFIG, levels=(replace(residual, share=share),)) for share in (1.0, 0.5))
    chained = replace(plain, cms="sequential")
    assert len({model_fingerprint(config, "digest") for config in (plain, shared, chained)}) == 3
