"""Defining test 2: a batch = its rows alone."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
import torch
from toys import CONFIG, Bench, make_params, rows_with_a_past, scripted

from hope_server.engine.learner import Learner
from hope_server.engine.turn import SessionKey
from hope_server.model.hope import HopeModel
from hope_server.model.state import FastState, empty_state

LENGTHS = (3, 70, 41)


def _assert_rows_equal(batch: FastState, alone: list[FastState]) -> None:
    for row, single in enumerate(alone):
        expected = single.tensors()
        for name, tensor in batch.rows(row, row + 1).tensors().items():
            # One float64 product of a batch may sum in another order than that of a row.
            torch.testing.assert_close(
                tensor, expected[name], rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_decode_and_prefill_of_a_batch_equal_each_row_alone() -> None:
    """Rows of different lengths and memories, one of them never written, do not see each other."""
    model, params = HopeModel(CONFIG, torch.float64), make_params()
    batch = rows_with_a_past(model, params, LENGTHS)
    alone = [batch.rows(row, row + 1).clone() for row in range(3)]
    tokens = torch.tensor([9, 8, 7])
    together, batch = model.decode(params, batch, tokens, torch.ones(3, dtype=torch.bool))
    read, batch = model.prefill(params, batch, tokens[:, None].repeat(1, 5))
    for row in range(3):
        logits, state = model.decode(params, alone[row], tokens[row : row + 1], torch.ones(1, dtype=torch.bool))
        torch.testing.assert_close(together[row : row + 1], logits, rtol=0, atol=1e-11)
        logits, state = model.prefill(params, state, tokens[row].repeat(1, 5))
        torch.testing.assert_close(read[row : row + 1], logits, rtol=0, atol=1e-11)
    _assert_rows_equal(batch, alone)


@pytest.mark.parametrize("order", [(0, 2), (2, 0), (2, 0, 1)])
def test_rows_that_lie_apart_are_decoded_with_the_memories_of_each(order: tuple[int, ...]) -> None:
    """In one step over the slow weights; a row between them that does not read is left exactly as it was."""
    model, params = HopeModel(CONFIG, torch.float64), make_params()
    pool = rows_with_a_past(model, params, LENGTHS)
    alone = [pool.rows(row, row + 1).clone() for row in range(3)]
    tokens = torch.tensor([9, 8, 7])[: len(order)]
    found = model.decode_stretches(
        params, [pool.rows(row, row + 1) for row in order], tokens, torch.ones(len(order), dtype=torch.bool)
    )
    for place, row in enumerate(order):
        logits, _ = model.decode(params, alone[row], tokens[place : place + 1], torch.ones(1, dtype=torch.bool))
        torch.testing.assert_close(found[place : place + 1], logits, rtol=0, atol=1e-11)
    _assert_rows_equal(pool, alone)


def test_an_inactive_row_is_left_exactly_as_it_was() -> None:
    """Decoding some rows changes no bit of the others, although all are computed."""
    model, params = HopeModel(CONFIG, torch.float64), make_params()
    state = rows_with_a_past(model, params, LENGTHS)
    before = state.clone()
    model.decode(params, state, torch.tensor([1, 2, 3]), torch.tensor([True, False, True]))
    after = state.rows(1, 2).tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.rows(1, 2).tensors().items())
    assert not torch.equal(state.window.keys[:, 0], before.window.keys[:, 0])


def test_a_write_of_a_batch_equals_each_row_alone() -> None:
    """Each row's memory takes the gradient of its own text; a row that is not taught keeps its memory."""
    model, params = HopeModel(CONFIG, torch.float64), make_params()
    batch = empty_state(model.memory, 3, torch.float64)
    alone = [batch.rows(row, row + 1).clone() for row in range(3)]
    tokens = torch.randint(0, 256, (3, 8))
    teaches = torch.ones(3, 8, dtype=torch.bool)
    teaches[1] = False
    Learner(model).write_chunk(params, batch, tokens, teaches)
    for row in range(3):
        Learner(model).write_chunk(params, alone[row], tokens[row : row + 1], teaches[row : row + 1])
    _assert_rows_equal(batch, alone)
    assert batch.levels["fast"].num_writes.tolist() == [1, 0, 1]


def test_turns_that_run_together_say_and_learn_what_each_does_alone() -> None:
    """Two sessions and a stateless request, co-batched from prefill to consolidation, end as if each were alone."""
    texts = {"a": list(range(60, 95)), "b": list(range(97, 122)) * 2, "c": list(range(48, 60))}

    def turns(bench: Bench, names: str) -> list:
        runs = []
        for name in names:
            run = bench.run(texts[name], generation=scripted(bench, texts[name][::-1]), key=SessionKey("t", name))
            if name == "c":
                feed = deque(replace(token, source=None) for token in run.feed)
                run = replace(run, feed=feed, key=None, learns=False)
            runs.append(run)
        return runs

    together = Bench()
    joint = turns(together, "abc")
    together.finish(*joint)
    for run, name in zip(joint[:2], "ab", strict=True):
        single = Bench()
        (lonely,) = turns(single, name)
        single.finish(lonely)
        _assert_rows_equal(together.pool.row(run.slot), [single.pool.row(lonely.slot)])
        for ours, theirs in zip(run.generation.sampler.seen, lonely.generation.sampler.seen, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
        assert run.log.journal == lonely.log.journal
