"""Whose study goes on when nobody waits: one that has begun, until it is done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hope_server.engine.runner import Runner
from hope_server.engine.session_log import BlockJob, SessionLog


class Studies:
    """A writer whose studies take three steps; notes whose they were."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance_idle(self, log: SessionLog, _state: Any) -> bool:
        """Take a step of the log's study."""
        job = log.job
        if job is None or (job.runs is not None and len(job.runs) == 3):
            return False
        job.runs = [*(job.runs or []), None]  # type: ignore[list-item]
        self.steps.append(job.start)
        return True


def resident(number: int | None) -> Any:
    """A session in a slot, with a study of that number to be made, or none."""
    job = None if number is None else BlockJob(effect_at=100, start=number, stop=number + 1, seed=0)
    return SimpleNamespace(log=SessionLog(job=job))


def runner_of(residents: list[Any], writer: Studies) -> Runner:
    """A runner with these sessions in its slots."""
    config = SimpleNamespace(levels=(), attention_blocks=(), window=SimpleNamespace(size=8), chunk_size=8)
    pool = SimpleNamespace(residents=residents, row=lambda slot: slot)
    model: Any = SimpleNamespace(config=config)
    parts: Any = (None, pool, writer, None, "fingerprint")
    return Runner(model, *parts)


def test_a_study_that_has_begun_is_done_before_another_begins() -> None:
    """Also where sessions come into slots before its own meanwhile: each study that waits half done holds memory."""
    writer, residents = Studies(), [None, resident(None), resident(7), resident(8)]
    runner = runner_of(residents, writer)
    assert runner.idle([])
    residents[0], residents[1] = resident(5), resident(6)
    while runner.idle([]):
        pass

    assert writer.steps == [7, 7, 7, 5, 5, 5, 6, 6, 6, 8, 8, 8]


def test_a_study_that_has_begun_goes_on_while_its_session_has_a_turn() -> None:
    """Else each turn that comes leaves one half done, and idle time begins another's; none begins in a turn's slot."""
    writer, residents = Studies(), [resident(5), resident(6), None]
    runner = runner_of(residents, writer)
    assert runner.idle([])
    turn: Any = SimpleNamespace(log=residents[0].log.copy(), slot=0)
    other: Any = SimpleNamespace(log=SessionLog(job=BlockJob(effect_at=100, start=9, stop=10, seed=0)), slot=2)
    residents[0] = None
    while runner.idle([other, turn]):
        pass

    assert writer.steps == [5, 5, 5, 6, 6, 6]
    assert not other.log.has_begun_study


def test_with_nothing_to_study_nothing_is_done() -> None:
    """Sessions without a block, and empty slots."""
    writer = Studies()
    assert not runner_of([None, resident(None)], writer).idle([])
    assert writer.steps == []
