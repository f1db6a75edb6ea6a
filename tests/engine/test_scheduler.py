"""Who is computed next: fair admission, every decoding turn each round, others in rotation and within their share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.scheduler import LAST_READ_SHARE, PATIENCE, SHARES, Kind, Scheduler, Want


@dataclass(eq=False)
class Turn:
    """A turn that wants one thing."""

    name: str
    wants: Want
    tenant: str = ""
    is_bulk: bool = False
    reads_last: bool = False


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


def admitted(scheduler: Scheduler[Turn], count: int) -> list[str]:
    """The names of the next turns that get a slot."""
    return [turn.name for _ in range(count) if (turn := scheduler.admit()) is not None]


def test_a_tenant_with_many_turns_does_not_hold_up_another() -> None:
    """Who has fewest slots comes first, then who was served longest ago; within a tenant the order stays."""
    scheduler: Scheduler[Turn] = Scheduler()
    for turn in [
        *(Turn(f"a{number}", "read", "a") for number in range(4)),
        *(Turn(f"b{n}", "read", "b") for n in "01"),
    ]:
        scheduler.submit(turn)
    assert admitted(scheduler, 6) == ["a0", "b0", "a1", "b1", "a2", "a3"]


def test_a_slot_that_is_free_again_goes_to_who_holds_none() -> None:
    """Two tenants wait behind one that holds both slots; when one is given back the others come before its next."""
    scheduler = running(Turn("a0", "read", "a"), first := Turn("a1", "read", "a"))
    for turn in (Turn("a2", "read", "a"), Turn("b0", "read", "b")):
        scheduler.submit(turn)
    scheduler.remove(first)
    assert admitted(scheduler, 2) == ["b0", "a2"]


def test_bulk_work_comes_after_what_somebody_waits_for_but_not_for_ever() -> None:
    """Chats pass a text that waits to be learned so many times and no more."""
    scheduler: Scheduler[Turn] = Scheduler()
    scheduler.submit(Turn("bulk", "read", "a", is_bulk=True))
    for number in range(PATIENCE + 2):
        scheduler.submit(Turn(f"chat{number}", "read", "a"))
    order = admitted(scheduler, PATIENCE + 3)
    assert order.index("bulk") == PATIENCE


def test_a_turn_that_is_not_ready_keeps_its_place() -> None:
    """Others pass it, and it is next as soon as it is ready."""
    scheduler: Scheduler[Turn] = Scheduler()
    slow, second, third = (Turn(name, "read") for name in ("slow", "second", "third"))
    for turn in (slow, second, third):
        scheduler.submit(turn)
    assert scheduler.admit(lambda turn: turn is not slow) is second
    assert scheduler.next_in_line(5) == [slow, third]
    assert scheduler.admit() is slow


@pytest.mark.parametrize("kind", ["read", "consolidate"])
def test_others_get_no_more_than_their_share_while_turns_decode(kind: Kind) -> None:
    """However long their steps are, decoding keeps its share of the time; and they go on."""
    scheduler = running(Turn("talk", "decode"), Turn("work", kind))
    spent = {"decode": 0.0, kind: 0.0}
    for _ in range(3_000):
        plan = scheduler.next()
        spent["decode"] += 0.05
        scheduler.spent("decode", 0.05)
        if getattr(plan, kind) is not None:
            spent[kind] += 1.3
            scheduler.spent(kind, 1.3)
    assert spent[kind] / sum(spent.values()) == pytest.approx(SHARES[kind], abs=0.02)


@pytest.mark.parametrize("others", [0, 1])
def test_last_chunks_of_prompts_take_a_larger_share(others: int) -> None:
    """Several are read between two rounds of decoding, which keeps its share; long prompts keep what is theirs."""
    turns = [Turn("talk", "decode"), Turn("near", "read", reads_last=True), Turn("near too", "read", reads_last=True)]
    scheduler = running(*turns, *[Turn("long", "read")] * others)
    spent: Counter[str] = Counter()
    for _ in range(3_000):
        plan = scheduler.next()
        assert not plan.is_idle
        if plan.decode:
            spent["decode"] += 5
            scheduler.spent("decode", 0.05)
        if plan.read is not None:
            seconds = 0.09 if plan.read.reads_last else 1.3
            spent[plan.read.name] += round(100 * seconds)
            scheduler.spent("read", seconds, is_last=plan.read.reads_last)
    near = spent["near"] + spent["near too"]
    assert near / (near + spent["decode"]) == pytest.approx(LAST_READ_SHARE, abs=0.02)
    assert abs(spent["near"] - spent["near too"]) < 0.1 * near
    if others:
        assert spent["long"] / (spent["long"] + spent["decode"]) == pytest.approx(SHARES["read"], abs=0.02)


@pytest.mark.parametrize("want", ["decode", "read"])
def test_background_work_takes_no_more_than_its_share(want: Want) -> None:
    """Beside turns that decode or read it goes on, slowly; a turn that waits for its memory goes before it."""
    scheduler = running(Turn("talk", want))
    spent = {want: 0.0, "background": 0.0}
    for _ in range(3_000):
        plan = scheduler.next()
        assert not plan.is_idle
        spent[want] += 0.05
        scheduler.spent(want, 0.05)
        if plan.has_spare:
            spent["background"] += 1.3
            scheduler.spent("consolidate", 1.3)
    assert spent["background"] / sum(spent.values()) == pytest.approx(SHARES["consolidate"], abs=0.02)
    scheduler.submit(Turn("work", "consolidate"))
    scheduler.admit()
    assert not scheduler.next().has_spare


def test_without_decoding_turns_nothing_is_held_back() -> None:
    """What was owed to turns that have ended is forgotten."""
    scheduler = running(talk := Turn("talk", "decode"), Turn("work", "consolidate"))
    scheduler.spent("consolidate", 60.0)
    assert scheduler.next().consolidate is None
    scheduler.remove(talk)
    assert scheduler.next().consolidate is not None
