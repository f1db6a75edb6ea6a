"""The plan of what goes wrong with several servers, and the thread that carries it out."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import pytest

from loadtests.faults import KINDS, OF_STORE, Fault, FaultThread, plan_faults


@pytest.mark.parametrize("seconds", [20.0, 60.0, 180.0, 3600.0])
@pytest.mark.parametrize("seed", range(5))
def test_faults_follow_one_another_and_are_mended_in_time(seconds: float, seed: int) -> None:
    """Never two at once, so that there is always a server and a replica; the last is mended before the end."""
    plan = plan_faults(seconds, num_servers=3, num_primaries=3, seed=seed)

    assert plan and plan[0].at > 0
    assert all(one.at + one.down < other.at for one, other in itertools.pairwise(plan))
    assert plan[-1].at + plan[-1].down < seconds
    assert all(0 <= fault.index < 3 and fault.down > 0 for fault in plan)


def test_three_minutes_have_every_kind_more_than_once() -> None:
    """What `make scale` does by default kills servers and primaries, stops and pauses servers, moves slots."""
    kinds = [fault.kind for fault in plan_faults(180.0, 3, 3, seed=1)]

    assert set(kinds) == set(KINDS)
    assert all(kinds.count(kind) >= 2 for kind in KINDS)


def test_a_store_without_primaries_loses_none() -> None:
    """A plan for one Redis kills servers only."""
    assert not OF_STORE & {fault.kind for fault in plan_faults(600.0, 2, 0, seed=1)}


def test_one_seed_is_one_plan() -> None:
    """A run can be repeated; another seed is another plan."""
    assert plan_faults(180.0, 3, 3, seed=4) == plan_faults(180.0, 3, 3, seed=4)
    assert plan_faults(180.0, 3, 3, seed=4) != plan_faults(180.0, 3, 3, seed=5)


class Breaker:
    """Notes what is broken and mended."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.has_begun = threading.Event()

    def begin(self, fault: Fault) -> tuple[str, Callable[[], None]]:
        """Break something."""
        self.said.append(f"break {fault.index}")
        self.has_begun.set()
        return f"server-{fault.index}", lambda: self.said.append(f"mend {fault.index}")


def test_what_was_broken_is_mended_when_the_load_ends_early() -> None:
    """A fault that would last for an hour ends with the block; those behind it never begin."""
    breaker = Breaker()
    plan = [Fault(0.0, "kill server", 1, down=3600.0), Fault(3601.0, "kill server", 2, down=1.0)]
    with FaultThread(plan, breaker.begin) as faults:
        assert breaker.has_begun.wait(10)

    assert breaker.said == ["break 1", "mend 1"]
    assert [(noted.kind, noted.what) for noted in faults.noted] == [("kill server", "server-1")]
    assert faults.error is None


def test_what_cannot_be_mended_is_told() -> None:
    """The driver must not take a broken fleet for a whole one."""

    def begin(_fault: Fault) -> tuple[str, Callable[[], None]]:
        raise RuntimeError("no such server")

    thread = FaultThread([Fault(0.0, "kill server", 0, 1.0), Fault(0.0, "kill server", 1, 1.0)], begin)
    with thread:
        pass

    assert str(thread.error) == "no such server"
    assert thread.noted == []
