"""What the simulation says beside a run that was made."""

from __future__ import annotations

from pathlib import Path

import pytest

from hope_server.capacity.constants import Constants
from loadtests.checks import Findings
from loadtests.forecast import forecast
from loadtests.ledger import Account, Answer, Record
from loadtests.plan import Plan
from loadtests.report import Run
from loadtests.sampler import Samples

# A server that does nothing but write, a token in 20 ms however many there are.
WRITES = Constants("m", "m", "c", 1, {1: 0.02, 8: 0.02}, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1e6, 1e6, 1e6)


def run_of(folder: Path, scenario: str, answer_seconds: float) -> Run:
    """A run of one user for 100 s, who thinks for a second; every reply has 50 tokens."""
    account = Account()
    at, number = 0.0, 0
    while at + answer_seconds < 100.0:
        ended = at + answer_seconds
        answer = Answer("a", "b", 1, 60, 55, False, None, "hot", "", ended, answer_seconds * 1e3, 20.0, 20.0, 50)
        record = Record((0, "s"), f"k{number}", "chat", scenario, at, has_ended=True, answers=[answer])
        account.turns[record.key] = record
        at, number = ended + 1.0, number + 1
    plan = Plan(
        "http://x", str(folder), scenarios=((scenario, 1.0),), users=1, sessions=1, seconds=100.0, think_seconds=1.0
    )
    return Run("r", plan, "toy", 8, account, Samples(), Findings(), 0.0, 100.0, False, 0, 0)


def test_a_run_that_went_as_expected_has_ratios_near_one(tmp_path: Path) -> None:
    """Fifty tokens of 20 ms are a second, with a second of thinking half a turn a second."""
    found = forecast(run_of(tmp_path, "chat", 1.02), WRITES, num_servers=1, num_cores=1)

    assert found["measured"]["turns_per_second"] == pytest.approx(0.5, rel=0.05)
    assert found["ratio"]["answer_seconds"] == pytest.approx(1.0, rel=0.06)
    assert found["ratio"]["turns_per_second"] == pytest.approx(1.0, rel=0.15)


def test_a_run_that_was_slower_than_expected_shows_it(tmp_path: Path) -> None:
    """Answers that took twice as long as the constants say: the simulation is at half of what was measured."""
    found = forecast(run_of(tmp_path, "chat", 2.04), WRITES, num_servers=1, num_cores=1)

    assert found["ratio"]["answer_seconds"] == pytest.approx(0.5, rel=0.06)
    assert found["ratio"]["turns_per_second"] > 1.3


def test_cores_that_others_took_are_not_the_servers(tmp_path: Path) -> None:
    """An engine that has half of its core answers in twice the time."""
    found = forecast(run_of(tmp_path, "chat", 2.04), WRITES, num_servers=1, num_cores=1, cores_of_others=0.5)

    assert found["ratio"]["answer_seconds"] == pytest.approx(1.0, rel=0.06)
    assert found["cores"] == {"all": 1, "others": 0.5}


def test_what_the_simulation_does_not_know_is_refused(tmp_path: Path) -> None:
    """Edits and forks are not turns one after the other."""
    with pytest.raises(ValueError, match="edit cannot be simulated"):
        forecast(run_of(tmp_path, "edit", 1.0), WRITES, num_servers=1, num_cores=1)


def test_a_run_without_answers_is_refused(tmp_path: Path) -> None:
    """Nothing cannot be compared with anything."""
    run = run_of(tmp_path, "chat", 1.0)
    run.account.turns.clear()
    with pytest.raises(ValueError, match="nothing was answered"):
        forecast(run, WRITES, num_servers=1, num_cores=1)
