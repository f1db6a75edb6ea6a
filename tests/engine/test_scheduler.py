"""Who is computed next: fair admission, every decoding turn each round, others in rotation and within their share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hope_server.engine.scheduler import CONSOLIDATE_SHARE, PATIENCE, Scheduler, Want


@dataclass(eq=False)
class Turn:
    """A turn that wants one thing."""

    name: str
    wants: Want
    tenant: str = ""
    is_bulk: bool = False


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


def test_a_round_decodes_all_or_reads_one_and_consolidates_one() -> None:
    """Tokens for every generating turn, then a chunk for one reader; a step for one that waits for its memory."""
    scheduler = running(*(Turn(f"{wants}{i}", wants) for i in range(2) for wants in ("decode", "read", "consolidate")))
    plan = scheduler.next()
    assert [turn.name for turn in plan.decode] == ["decode0", "decode1"]
    assert plan.read is None
    assert plan.consolidate is not None
    assert plan.consolidate.wants == "consolidate"
    scheduler.spent("decode", 0.1)
    plan = scheduler.next()
    assert plan.read is not None
    assert plan.read.wants == "read"
    assert not plan.decode
    assert not plan.is_idle


@given(st.lists(st.sampled_from(["decode", "read", "consolidate", "nothing"]), max_size=9))
def test_turns_that_read_take_turns_and_one_that_consolidates_goes_on(wants: list[Want]) -> None:
    """Of as many chunks as there are turns that read, each has had exactly one; of steps, the first has had all."""
    turns = [Turn(str(number), want) for number, want in enumerate(wants)]
    scheduler = running(*turns)
    served: dict[str, list[str]] = {"read": [], "consolidate": []}
    for _ in range(200):
        plan = scheduler.next()
        assert plan.decode in ([], [turn for turn in turns if turn.wants == "decode"])
        assert plan.is_idle == all(want == "nothing" for want in wants)
        if plan.decode:
            scheduler.spent("decode", 0.1)
        if plan.read is not None:
            served["read"].append(plan.read.name)
            scheduler.spent("read", 0.1)
        if plan.consolidate is not None:
            served["consolidate"].append(plan.consolidate.name)
            scheduler.spent("consolidate", 0.1)
    for kind, names in served.items():
        same = [turn.name for turn in turns if turn.wants == kind]
        assert Counter(names[: len(same)]) == Counter(same if kind == "read" else same[:1] * len(same))
        assert bool(names) == bool(same)


def test_long_texts_and_chats_are_consolidated_by_turns() -> None:
    """A bulk turn's job, which may take minutes, holds up a chat by half; of each sort the first goes on."""
    scheduler = running(
        *(Turn(f"{sort}{i}", "consolidate", is_bulk=sort == "bulk") for sort in ("bulk", "chat") for i in (0, 1))
    )
    seen = []
    for _ in range(6):
        found = scheduler.next().consolidate
        assert found is not None
        seen.append(found.name)

    assert Counter(seen) == {"bulk0": 3, "chat0": 3}
    assert seen[:2] == seen[2:4] == seen[4:]


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


@pytest.mark.parametrize("seconds", [0.03, 1.3])
@pytest.mark.parametrize(("readers", "share"), [(1, 0.5), (3, 0.75), (20, 0.8), (0, 0.15)])
def test_others_get_their_share_while_a_turn_decodes(readers: int, share: float, seconds: float) -> None:
    """However long their steps are, decoding keeps its share of the time; many that read have more than one has."""
    others = [Turn(f"read{number}", "read") for number in range(readers)] or [Turn("study", "consolidate")]
    scheduler = running(Turn("talk", "decode"), *others)
    spent: Counter[str] = Counter()
    for _ in range(6_000):
        plan = scheduler.next()
        assert not plan.is_idle
        if plan.decode:
            spent["decode"] += 1
            scheduler.spent("decode", 0.05)
        for kind, task in (("read", plan.read), ("consolidate", plan.consolidate)):
            if task is not None:
                spent[task.name] += 1
                scheduler.spent(kind, seconds)  # type: ignore[arg-type]
    taken = seconds * sum(spent[turn.name] for turn in others)
    found = taken / (taken + 0.05 * spent["decode"])
    # Consolidation takes at most a step a round: steps that are short beside rounds leave some of its share.
    assert found == pytest.approx(share, abs=0.03) or (not readers and seconds < 0.05 and 0.1 < found < share)
    assert (
        max(spent[turn.name] for turn in others) - min(spent[turn.name] for turn in others) <= 0.1 * spent["read0"] + 1
    )


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
    assert spent["background"] / sum(spent.values()) == pytest.approx(CONSOLIDATE_SHARE, abs=0.02)
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
