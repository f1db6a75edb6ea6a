"""An explicit consolidation of a long text: several jobs one after the other, and nothing left out."""

from __future__ import annotations

import pytest
import torch
from toys import CONFIG, Bench

from hope_server.engine import memory_writer
from hope_server.engine.rehearsal import Piece
from hope_server.engine.run import FeedToken, Rehearsal

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
