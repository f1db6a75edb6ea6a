"""What a long text leaves behind: several jobs where it is consolidated, a journal that stays short where it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toys import CONFIG, MODEL, Bench

from hope_server.engine import memory_writer
from hope_server.engine.rehearsal import Piece
from hope_server.engine.run import FeedToken, Rehearsal
from hope_server.engine.study import Study
from hope_server.model.config import LevelSpec
from hope_server.model.key_statistics import KeyStatistics

TEXT = "Mira keeps the violin in the red barn. Otto sleeps in the shed. It rains. The cat is fat and old. " * 2


@pytest.mark.parametrize(("most", "expected"), [(3, [3, 3, 2]), (4, [4, 4]), (512, [8])])
def test_a_long_text_takes_several_jobs(most: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with the sentences behind those of the one before, which are its past; a later turn finds nothing left."""
    monkeypatch.setattr(memory_writer, "MOST_PIECES", most)
    bench = Bench(config=CONFIG, is_automatic=False)
    planned: list[tuple[list[Piece], list[Piece]]] = []
    plan = bench.writer._level_job

    def note(spec: object, weights: torch.Tensor, new: list[Piece], past: list[Piece], seed: int) -> object:
        planned.append((new, past))
        return plan(spec, weights, new, past, seed)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.writer, "_level_job", note)
    run = bench.run((), rehearsal=Rehearsal(2))
    run.feed.extend(FeedToken(token, "user", 2) for token in bench.tokenizer.encode(TEXT))
    before = bench.model.memory.initial["slow"].clone()
    bench.turn(run, "v1")
    assert [len(new) for new, _ in planned] == expected
    told = [piece for new, _ in planned for piece in new]
    assert told == run.log.journal.pieces and run.log.journal.num_consolidated == len(told)
    for number, (_, past) in enumerate(planned):
        assert past == told[: sum(expected[:number])]
    assert run.stats.steps > 0 and not torch.equal(bench.pool.row(run.slot).levels["slow"].weights[0], before)
    again = bench.run((), version="v1", rehearsal=Rehearsal(2))
    bench.turn(again, "v2")
    assert len(planned) == len(expected)


@pytest.mark.parametrize("is_automatic", [False, True])
def test_text_that_nothing_consolidates_does_not_pile_up(*, is_automatic: bool) -> None:
    """A state is of constant size: of text that waits for a consolidation the newest is kept, block by block."""
    bench = Bench(config=CONFIG, is_automatic=is_automatic)
    version, lengths = None, []
    for number in range(4):
        run = bench.run((), version=version)
        run.feed.extend(FeedToken(token, "user", 0) for token in bench.tokenizer.encode(TEXT))
        if version is None:
            run.log.journal.max_tokens = 100
        version = f"v{number}"
        bench.turn(run, version)
        lengths.append(sum(len(piece.tokens) for piece in run.log.journal.pieces))
    assert max(lengths) < 100 + bench.writer._settings.block + run.log.journal.max_piece_tokens < 4 * len(TEXT)
    assert run.log.journal.num_consolidated == 0 and run.log.job is None


def test_a_turn_keeps_what_it_is_to_consolidate() -> None:
    """However long its text, nothing of it is dropped before its end."""
    bench = Bench(config=CONFIG, is_automatic=False)
    run = bench.run((), rehearsal=Rehearsal(1))
    run.log.journal.max_tokens = 50
    run.feed.extend(FeedToken(token, "user", 1) for token in bench.tokenizer.encode(TEXT))
    steps = []
    plan = bench.writer._level_job
    bench.writer._level_job = lambda *args: steps.append(len(args[2])) or plan(*args)  # type: ignore[method-assign, func-returns-value]
    bench.turn(run, "v1")
    assert sum(steps) == 8 > len(run.log.journal.pieces)


def test_what_is_only_read_through_is_studied_in_shorter_steps_than_lessons_before() -> None:
    """The first step of one pass, alone and behind a lesson of four: the same card, half as far."""
    spec = LevelSpec("slow", (1,), "dense", update_period=16, rule="sgd", lr=0.5, norm_cap=1e9, is_whitened=True)
    bench = Bench(config=replace(CONFIG, levels=(spec,)))
    unwhitened = KeyStatistics({1: torch.eye(MODEL.intermediate_size, dtype=torch.float64)}, {})
    bench.writer._desk = replace(bench.writer._desk, statistics=unwhitened)
    # A question is put on no card, so the lesson leaves the step's cards as they are.
    new = [Piece(tuple(bench.tokenizer.encode("Mira keeps the violin in the red barn.")), 1, 0)]
    old = [Piece(tuple(bench.tokenizer.encode("Where?")), 4, 0)]
    start = bench.model.memory.initial["slow"][None]
    moved = []
    for past in ([], old):
        job = bench.writer._level_job(spec, start, new, past, seed=1)
        assert isinstance(job, Study)
        job.advance(bench.params)
        moved.append(job.weights - start)
    assert moved[0].norm() > 0
    torch.testing.assert_close(moved[1], moved[0] / 2)
