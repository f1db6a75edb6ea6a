"""Who is computed next: admission in order, every decoding turn each round, readers and consolidations in rotation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.scheduler import Scheduler, Want


@dataclass(eq=False)
class Turn:
    """A turn that wants one thing."""

    name: str
    wants: Want


def running(*turns: Turn) -> Scheduler[Turn]:
    """A scheduler in which these turns have been admitted."""
    scheduler: Scheduler[Turn] = Scheduler()
    for turn in turns:
        scheduler.submit(turn)
        scheduler.admit()
    return scheduler


def test_turns_are_admitted_in_the_order_they_came() -> None:
    """The first to wait is the first to run; with nobody waiting there is nobody to admit."""
    scheduler: Scheduler[Turn] = Scheduler()
    turns = [Turn(name, "read") for name in "abc"]
    for turn in turns:
        scheduler.submit(turn)
    assert [scheduler.admit() for _ in range(4)] == [*turns, None]
    assert scheduler.running == turns
    assert not scheduler.waiting


def test_a_round_decodes_all_and_reads_and_consolidates_one() -> None:
    """Tokens for every generating turn, one chunk for one reader, one step for one that waits for its memory."""
    scheduler = running(*(Turn(f"{wants}{i}", wants) for i in range(2) for wants in ("decode", "read", "consolidate")))
    plan = scheduler.next()
    assert [turn.name for turn in plan.decode] == ["decode0", "decode1"]
    assert plan.read is not None
    assert plan.read.wants == "read"
    assert plan.consolidate is not None
    assert plan.consolidate.wants == "consolidate"
    assert not plan.is_idle


@given(st.lists(st.sampled_from(["decode", "read", "consolidate", "nothing"]), max_size=9))
def test_no_turn_that_wants_something_waits_longer_than_its_kind_is_large(wants: list[Want]) -> None:
    """Within as many rounds as there are turns of its kind, each has had exactly one; `nothing` has none."""
    turns = [Turn(str(number), want) for number, want in enumerate(wants)]
    scheduler = running(*turns)
    for kind in ("read", "consolidate"):
        same = [turn for turn in turns if turn.wants == kind]
        plans = [scheduler.next() for _ in same]
        served = Counter(getattr(plan, kind).name for plan in plans)
        assert served == Counter(turn.name for turn in same)
    plan = scheduler.next()
    assert plan.decode == [turn for turn in turns if turn.wants == "decode"]
    assert plan.is_idle == all(want == "nothing" for want in wants)


def test_waiting_turns_are_not_computed() -> None:
    """A turn without a slot is in no plan, whatever it wants."""
    scheduler: Scheduler[Turn] = Scheduler()
    scheduler.submit(Turn("a", "decode"))
    assert scheduler.next().is_idle


def test_a_turn_can_be_taken_out_wherever_it_is() -> None:
    """Removing says whether the turn was there, waiting or running, and is harmless when it is not."""
    scheduler: Scheduler[Turn] = Scheduler()
    first, second = Turn("a", "read"), Turn("b", "read")
    scheduler.submit(first)
    scheduler.submit(second)
    scheduler.admit()
    assert [scheduler.remove(first), scheduler.remove(second), scheduler.remove(first)] == [True, True, False]
    assert not scheduler.running
    assert not scheduler.waiting
