"""Needs from demand and constants, and constants from files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hope_server.capacity.arithmetic import needs
from hope_server.capacity.constants import BadConstants, Constants, load_constants
from hope_server.capacity.demand import Demand
from hope_server.errors import InvalidRequest

CONSTANTS = Constants(
    "m", "m", "c", 2, {1: 0.04, 8: 0.08}, 0.002, 0.0015, 0.02, 0.5, 0.1, 0.02, 0.05, 0.01, 1e7, 2e7, 5e6
)


def test_the_peak_is_what_is_planned_for() -> None:
    """A day's turns times the busiest hour's factor, by the seconds of a day."""
    assert Demand(86_400, turns_per_day=10, peak=3).turns_per_second == pytest.approx(30)


@pytest.mark.parametrize("sessions", [1, 100, 10_000, 1_000_000])
def test_servers_are_the_fewest_that_are_not_too_busy(sessions: int) -> None:
    """One server less would be busy for longer than was allowed."""
    demand = Demand(sessions)
    found = needs(demand, CONSTANTS, busy=0.6)
    work = found.turns_per_second * found.engine_seconds

    assert found.busy <= 0.6
    assert found.busy == pytest.approx(work / found.servers)
    assert found.servers == 1 or work / (found.servers - 1) > 0.57
    assert found.cores == 2 * found.servers


def test_a_turn_is_its_parts() -> None:
    """Reading, writing, study and the rest, by hand for a server that writes one reply at a time."""
    found = needs(Demand(10, prompt_tokens=50, reply_tokens=100, taught=0.4), CONSTANTS)

    assert found.in_step == 1.0
    # 50 tokens complete 50/64 of a chunk, and leave a tail of 30 tokens, on average; those take 0.0457 s.
    assert found.read == pytest.approx(50 * 0.002 + (50 - 50**2 / 128) * 0.0015)
    assert found.decode == pytest.approx(100 * (0.04 + 0.002))
    assert found.study == pytest.approx(50 * 0.4 * 0.1)
    assert found.engine_seconds == pytest.approx(0.1457 + 4.2 + 2.0 + 0.02, rel=1e-4)


def test_a_tail_is_what_prompts_leave_on_average() -> None:
    """Over all places in a chunk at which a prompt may begin; reading a tail is never shorter than a step."""
    for size in (10, 40, 64, 65, 300):
        tails = [(place + size) % 64 if place + size >= 64 else size for place in range(64)]
        mean = sum(tails) / len(tails)
        assert CONSTANTS.prompt(size) == pytest.approx(size * 0.002 + max(0.04, mean * 0.0015), rel=0.02)


def test_the_store_holds_every_session_and_its_copies() -> None:
    """A million sessions of 20 MB with one replica each, and a quarter for overhead: 50 TB."""
    found = needs(Demand(1_000_000), CONSTANTS, copies=1)

    assert found.store_bytes == pytest.approx(1e6 * 2e7 * 2 * 1.25)
    assert found.traffic_bytes == pytest.approx(found.turns_per_second * 5e6)


def test_steps_between_those_measured_lie_on_a_line() -> None:
    """Between 1 and 8 and beyond 8."""
    assert CONSTANTS.decode(1) == 0.04
    assert CONSTANTS.decode(4) == pytest.approx(0.04 + 3 * 0.04 / 7)
    assert CONSTANTS.decode(15) == pytest.approx(0.12)
    assert CONSTANTS.decode(0) == 0.0


def test_constants_come_back_as_they_were_written(tmp_path: Path) -> None:
    """What the bench writes is what `hope plan` reads."""
    path = tmp_path / "constants.json"
    path.write_text(CONSTANTS.to_json())

    assert load_constants(path) == CONSTANTS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turn_seconds": -1.0}, "turn_seconds is -1.0"),
        ({"num_slots": 0}, "num_slots is 0"),
        ({"decode_seconds": {}}, "decode_seconds"),
        ({"decode_seconds": {"2": 0.1}}, "a step of one reply"),
        ({"decode_seconds": 3}, "wrong kind"),
        ({"speed": 3}, "speed: no constant has that name"),
    ],
)
def test_files_that_hold_no_constants_are_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    """With the reason, and never taken for others."""
    path = tmp_path / "constants.json"
    path.write_text(json.dumps(json.loads(CONSTANTS.to_json()) | change))

    with pytest.raises(BadConstants, match=reason):
        load_constants(path)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "{not json"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    """Also one that is not there."""
    path = tmp_path / "constants.json"
    path.write_text(text)

    with pytest.raises(BadConstants):
        load_constants(path)
    with pytest.raises(BadConstants):
        load_constants(tmp_path / "none.json")


@pytest.mark.parametrize("name", ["sessions", "turns_per_day", "prompt_tokens", "reply_tokens"])
def test_demand_must_be_of_something(name: str) -> None:
    """Zero turns need no plan."""
    with pytest.raises(InvalidRequest, match=name):
        replace(Demand(10), **{name: 0})


def test_demand_has_bounds() -> None:
    """A peak below the average, a share above one, a pause below none."""
    for change in ({"peak": 0.5}, {"taught": 1.5}, {"think_seconds": -1.0}):
        with pytest.raises(InvalidRequest):
            replace(Demand(10), **change)
