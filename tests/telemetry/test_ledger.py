"""The ledger of a turn: what is added up, and what still counts after the turn."""

from __future__ import annotations

import time

import pytest

from hope_server.telemetry import Stage, StageTime, TurnLedger, current_ledger, turn_ledger


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that `time.perf_counter` gives; set its one item."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def _ignore(_stage: Stage, _found: StageTime) -> None:
    raise AssertionError("nothing was to come late")


def test_a_stage_adds_up(clock: list[float]) -> None:
    """A stage has its first beginning, its last end, the seconds between without the gaps, and all its bytes."""
    ledger = TurnLedger()
    for began, ended in ((1.0, 2.0), (5.0, 5.5)):
        clock[0] = ended
        ledger.add("decode", began, 10)

    assert ledger.close(_ignore) == {"decode": StageTime(1.0, 5.5, 1.5, 20)}


def test_stages_come_in_their_order(clock: list[float]) -> None:
    """Whatever was added first, stages come in the order in which a turn goes through them, and only those it had."""
    ledger = TurnLedger()
    for stage in ("commit", "prefill", "gate"):
        ledger.add(stage, 0.0)

    assert list(ledger.close(_ignore)) == ["gate", "prefill", "commit"]


def test_only_a_commit_counts_after_the_end(clock: list[float]) -> None:
    """What the engine still computed of a turn that was left is no longer counted; a commit behind the answer is."""
    late: list[tuple[Stage, StageTime]] = []
    ledger = TurnLedger()
    ledger.close(lambda stage, found: late.append((stage, found)))
    clock[0] = 3.0
    ledger.add("decode", 1.0)
    ledger.add("commit", 1.0, 7)

    assert late == [("commit", StageTime(1.0, 3.0, 2.0, 7))]


def test_the_current_ledger_is_the_tasks_own() -> None:
    """Who works for a turn finds its ledger; who works for none gets one that nobody looks at."""
    ledger = TurnLedger()
    token = turn_ledger.set(ledger)
    found = current_ledger()
    turn_ledger.reset(token)

    assert found is ledger
    assert current_ledger() is not ledger
