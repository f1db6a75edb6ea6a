"""Defining test 1: fed whole = fed in pieces = fed token by token, at any split."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import CONFIG, ROUNDED, Bench, make_params, make_tokenizer, scripted

from hope_server.engine.run import Run
from hope_server.model.hope import HopeModel
from hope_server.model.state import empty_state

TEXT = (
    "Mira has a red cat. It sleeps! Otto (who is 9) keeps 2 dogs.\nAnd so on: one, two. "
    "A line that goes on and on without any end in sight so that it is cut"
)
TOKENS = make_tokenizer().encode(TEXT)


def _learn_in_pieces(bench: Bench, splits: list[int]) -> Run:
    """Feed TOKENS to one session in turns that end at the splits; the last turn, still seated."""
    bounds = [0, *sorted(splits), len(TOKENS)]
    run = bench.run([])
    version = None
    for number, (start, stop) in enumerate(pairwise(bounds)):
        run = bench.run(TOKENS[start:stop], version=version)
        version = f"v{number}"
        bench.turn(run, version)
    return run


def _assert_same_memory(left: Bench, left_slot: int, right: Bench, right_slot: int) -> None:
    """Memories equal to the last bit; window and pending tokens too, but for the rounding of an unfinished chunk."""
    ours, theirs = left.pool.row(left_slot).tensors(), right.pool.row(right_slot).tensors()
    for name in ours:
        if name.startswith("window.") and name != "window.positions":
            # Keys of the unfinished chunk were computed in other batch shapes: float64 rounding, nothing more.
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-12)
        else:
            assert torch.equal(ours[name], theirs[name]), name


@settings(max_examples=12)
@given(st.lists(st.integers(1, len(TOKENS) - 1), max_size=6, unique=True))
def test_memory_does_not_depend_on_how_the_text_was_split_into_turns(splits: list[int]) -> None:
    """A session that reads a text in several turns ends with the memory of one that reads it at once, bit for bit."""
    whole, pieces = Bench(), Bench()
    one = _learn_in_pieces(whole, [])
    many = _learn_in_pieces(pieces, splits)
    assert whole.pool.row(one.slot).levels["slow"].num_writes.item() > 0
    assert whole.pool.row(one.slot).levels["fast"].num_writes.item() == len(TOKENS) // 8
    _assert_same_memory(whole, one.slot, pieces, many.slot)
    assert one.log.journal == many.log.journal
    assert (one.log.position, one.log.tokens_learned) == (many.log.position, many.log.tokens_learned)


@pytest.mark.parametrize("prompt", [1, 7, 8, 9, 40])
def test_memory_does_not_depend_on_prefill_or_decode(prompt: int) -> None:
    """Tokens that come one by one through decode leave the memory that they leave when read at once."""
    read, spoken = Bench(is_automatic=False), Bench(is_automatic=False)
    one = read.run(TOKENS)
    read.turn(one)
    two = spoken.run(TOKENS[:prompt], generation=scripted(spoken, TOKENS[prompt:]))
    spoken.turn(two)
    ours, theirs = read.pool.row(one.slot), spoken.pool.row(two.slot)
    first, second = ours.levels["fast"].tensors(), theirs.levels["fast"].tensors()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert first["num_writes"].item() == len(TOKENS) // 8
    torch.testing.assert_close(ours.window.keys, theirs.window.keys, rtol=0, atol=1e-12)
    assert one.log.position == two.log.position


@pytest.mark.parametrize("config", [CONFIG, ROUNDED])
def test_reading_without_learning_is_split_invariant(config) -> None:
    """Prefill at once, in pieces and by decode give the same logits and window, also past the window's size."""
    model, params = HopeModel(config, torch.float64), make_params()
    whole, pieces, single = (empty_state(model.memory, 1, torch.float64) for _ in range(3))
    tokens = torch.tensor([TOKENS])[:, :150]
    for start in range(0, 150, 50):
        expected, whole = model.prefill(params, whole, tokens[:, start : start + 50])
    for start, stop in ((0, 1), (1, 14), (14, 46), (46, 96), (96, 150)):
        actual, pieces = model.prefill(params, pieces, tokens[:, start:stop])
    for index in range(150):
        alone, single = model.decode(params, single, tokens[:, index], torch.tensor([True]))
    # float64 sums in another order.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(single.window.keys, whole.window.keys, rtol=0, atol=1e-11)
