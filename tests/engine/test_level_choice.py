"""A turn that names the levels it teaches writes these and no others, however its text arrives."""

from __future__ import annotations

import random

import pytest
import torch
from toys import CONFIG, KEY, Bench

from hope_server.engine.run import FeedToken, Rehearsal, Run

TEXT = "Mira keeps the violin in the red barn. Otto sleeps in the shed. It rains. The cat is fat and old. " * 2
Levels = tuple[str, ...] | None


def feed(bench: Bench, choices: list[tuple[int, Levels]]) -> list[FeedToken]:
    """The text, cut into parts of so many tokens that each may teach these levels."""
    tokens = bench.tokenizer.encode(TEXT)
    found: list[FeedToken] = []
    for count, levels in choices:
        found += [FeedToken(token, "user", 2, levels) for token in tokens[len(found) : len(found) + count]]
    return found


def read(choices: list[tuple[int, Levels]], cuts: list[int]) -> tuple[Bench, Run]:
    """Read the parts in turns that end at the cuts; returns the last."""
    bench = Bench(config=CONFIG)
    tokens = feed(bench, choices)
    version, run = None, None
    for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(tokens)], strict=True)):
        run = bench.run((), version=version)
        run.feed.extend(tokens[start:stop])
        bench.turn(run, f"v{number}")
        version = f"v{number}"
    assert run is not None
    return bench, run


def state_of(bench: Bench, run: Run) -> dict[str, torch.Tensor]:
    """A session's tensors, without what no later token can depend on."""
    tensors = dict(bench.pool.row(run.slot).tensors())
    pending = int(bench.pool.row(run.slot).num_pending[0])
    for name in ("pending.tokens", "pending.teaches"):
        tensors[name] = tensors[name][:, :pending]
    return tensors


MIXED: list[tuple[int, Levels]] = [(13, None), (21, ("slow",)), (7, ("fast",)), (30, None), (9, ()), (40, ("slow",))]


@pytest.mark.parametrize("seed", range(4))
def test_it_does_not_matter_how_the_text_arrives(seed: int) -> None:
    """Fed whole and fed in pieces, the same choice for each token leaves the same state, bit for bit."""
    whole, last = read(MIXED, [])
    rng = random.Random(seed)
    pieces, end = read(MIXED, sorted(rng.sample(range(1, sum(count for count, _ in MIXED)), 5)))
    expected = state_of(whole, last)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(pieces, end).items())
    assert end.log.journal == last.log.journal
    assert end.log.pending_levels == last.log.pending_levels


def test_naming_all_levels_is_naming_none() -> None:
    """The restriction that restricts nothing changes no bit of any tensor."""
    free, one = read([(120, None)], [])
    named, two = read([(120, ("fast", "slow"))], [])
    expected = state_of(free, one)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state_of(named, two).items())


@pytest.mark.parametrize(("level", "other"), [("fast", "slow"), ("slow", "fast")])
def test_a_level_that_is_not_named_stays_new(level: str, other: str) -> None:
    """The named one is written as if the other were as well."""
    bench, run = read([(120, (level,))], [])
    state = bench.pool.row(run.slot)
    assert int(state.levels[level].num_writes[0]) > 0
    assert int(state.levels[other].num_writes[0]) == 0
    assert torch.equal(state.levels[other].weights, bench.model.memory.initial[other].expand(1, -1))


def test_tokens_that_wait_in_a_chunk_teach_only_their_own_levels() -> None:
    """A chunk shared with a turn that forbids a level teaches that level the other turn's tokens, and only these."""
    shared, run = read([(5, ("slow",)), (3, None)], [5])
    alone, end = Bench(config=CONFIG), None
    end = alone.run(())
    tokens = feed(alone, [(8, None)])
    end.feed.extend(FeedToken(item.token, "user" if place >= 5 else None, 2) for place, item in enumerate(tokens))
    alone.turn(end)
    fast = shared.pool.row(run.slot).levels["fast"].weights
    assert torch.equal(fast, alone.pool.row(end.slot).levels["fast"].weights)


def test_text_that_may_not_teach_a_level_is_no_past_of_it() -> None:
    """Rehearsing later text, a level is not shown again what it was not to learn."""
    bench = Bench(config=CONFIG, is_automatic=False)
    run = bench.run((), rehearsal=Rehearsal(2))
    run.feed.extend(feed(bench, [(40, ("fast",))]))
    bench.turn(run, "v1")
    after = bench.run((), version="v1", rehearsal=Rehearsal(2), key=KEY)
    after.feed.extend(feed(bench, [(40, None), (24, None)])[40:])
    bench.turn(after, "v2")
    fresh = Bench(config=CONFIG, is_automatic=False)
    only = fresh.run((), rehearsal=Rehearsal(2))
    only.feed.extend(FeedToken(item.token) for item in feed(fresh, [(40, None)]))
    only.feed.extend(feed(fresh, [(40, None), (24, None)])[40:])
    fresh.turn(only)
    slow = bench.pool.row(after.slot).levels["slow"].weights
    expected = fresh.pool.row(only.slot).levels["slow"].weights
    assert torch.equal(slow, expected)
    assert {piece.levels for piece in after.log.journal.pieces} == {("fast",), None}
