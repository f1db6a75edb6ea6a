"""The checks after a load find each kind of fault, and nothing where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from loadtests.checks import KEPT_REQUESTS, PROMISES, Seen, check_everything
from loadtests.ledger import Account, Answer, Birth, Record

NAME = (0, "s")


def answer(number: int, **changes: Any) -> Answer:
    """The answer of the turn that made version `number`."""
    before = f"v{number - 1}" if number > 1 else None
    return replace(
        Answer(before, f"v{number}", number, 9, 5, False, None, "hot", f"text {number}", float(number), 10.0), **changes
    )


def record(number: int, *answers: Answer, **changes: Any) -> Record:
    """Turn `number`, answered once unless answers are given."""
    found = list(answers) or [answer(number)]
    return replace(Record(NAME, f"k{number}", "chat", "chat", number - 0.5, has_ended=True, answers=found), **changes)


def seen(numbers: list[int], **card: Any) -> Seen:
    """A session that learned the turns of these numbers, in this order, as the API shows it."""
    kept = [
        {"version": f"v{number}", "parent": f"v{number - 1}" if number > 1 else None, "number": place}
        for place, number in enumerate(numbers, 1)
    ][::-1]
    turns = [{"turn": number, "tokens_read": 9, "tokens_learned": 5} for number in numbers[::-1]]
    head = {"version": f"v{numbers[-1]}", "turn": numbers[-1], "tokens_learned": 5 * len(numbers)}
    return Seen(head | card, kept[:8], turns[:32])


def account(*records: Record, **changes: Any) -> Account:
    """A ledger of these turns."""
    return replace(Account({each.key: each for each in records}), **changes)


def broken(told: Account, found: Seen | None = None) -> set[str]:
    """The promises that the checks find broken."""
    findings = check_everything(told, {} if found is None else {NAME: found})
    return {promise for promise, faults in findings.faults.items() if faults}


def three() -> list[Record]:
    """Three turns, acknowledged."""
    return [record(number) for number in (1, 2, 3)]


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    """Three turns acknowledged, three learned; forty likewise, of which the API shows the newest."""
    assert broken(account(*three()), seen([1, 2, 3])) == set()
    many = [*range(1, 41)]
    assert broken(account(*map(record, many)), seen(many)) == set()


def test_the_order_of_answers_does_not_matter() -> None:
    """Users of one session hear of their turns in any order; the versions say how they were learned."""
    assert broken(account(*reversed(three())), seen([1, 2, 3])) == set()


def test_an_unanswered_turn_may_be_learned_or_not() -> None:
    """Where a user's process was killed, one commit more is no fault, and none is none; two more are."""
    told = account(*three(), Record(NAME, "k4", "chat", "chat", 3.5))

    assert broken(told, seen([1, 2, 3])) == set()
    assert broken(told, seen([1, 2, 3, 4])) == set()
    assert broken(told, seen([1, 2, 3, 4, 5])) == {"twice"}


def test_an_unanswered_turn_may_leave_one_gap() -> None:
    """Turns 2 and 4 follow turns that nobody heard of; one of them may."""
    told = [record(1), record(3), record(5)]
    unknown = Record(NAME, "k9", "chat", "chat", 3.5)

    assert broken(account(record(1), record(3), unknown), seen([1, 2, 3])) == set()
    assert "lost" in broken(account(*told, unknown), seen([1, 2, 3, 4, 5]))


def test_finds_a_session_that_is_gone() -> None:
    """All its turns are lost; one of which nothing was acknowledged may be missing."""
    assert broken(account(*three()), Seen(None)) == {"lost"}
    assert broken(account(record(1, refused="400", answers=[])), Seen(None)) == set()


@pytest.mark.parametrize(
    "numbers", [[1, 2], [1, 3], [2, 3]], ids=["the last is gone", "one in the middle is", "the first is"]
)
def test_finds_a_lost_turn(numbers: list[int]) -> None:
    """A turn that was acknowledged and that the session has not."""
    assert "lost" in broken(account(*three()), seen(numbers))


def test_finds_a_turn_that_only_the_list_of_turns_lacks() -> None:
    """Versions alone do not show what the state holds: the session's own list of turns is held against them."""
    found = seen([1, 2, 3])
    assert broken(account(*three()), replace(found, turns=found.turns[1:])) == {"lost"}


def test_finds_a_lost_turn_beside_an_unanswered_one() -> None:
    """What is unknown may be one commit more; it does not excuse one that is missing."""
    unknown = Record(NAME, "k4", "chat", "chat", 3.5)
    assert broken(account(*three(), unknown), seen([1, 2])) == {"lost"}


def test_finds_another_past_behind_the_same_head() -> None:
    """The kept versions are those that were acknowledged, not only as many."""
    found = seen([1, 2, 3])
    other = [dict(version) for version in found.versions]
    other[0]["parent"] = other[1]["version"] = "x2"
    assert broken(account(*three()), replace(found, versions=other)) == {"lost"}


def test_finds_an_older_head() -> None:
    """The newest version is the one that was acknowledged last."""
    assert broken(account(*three()), seen([1, 2, 3], version="v2")) == {"lost"}


def test_finds_a_turn_learned_twice() -> None:
    """More commits than turns; or one key with two versions; or one entry of the list of turns twice."""
    assert "twice" in broken(account(*three()), seen([1, 2, 3, 3]))
    assert "twice" in broken(account(*three(), record(4, answer(4), answer(5))), seen([1, 2, 3, 4, 5]))
    found = seen([1, 2, 3])
    assert "twice" in broken(account(*three()), replace(found, turns=[found.turns[0], *found.turns]))


def test_finds_a_key_that_was_learned_twice() -> None:
    """One key has two versions, whatever the session says of itself."""
    assert broken(account(record(1, answer(1), answer(2)))) == {"twice"}


def test_finds_a_fork_of_acknowledged_turns() -> None:
    """Two turns that follow the same version."""
    told = account(record(1), record(2), record(3, answer(3, version_before="v1")))
    assert "forks" in broken(told, seen([1, 2, 3]))


@pytest.mark.parametrize("change", [{"parent": "v1"}, {"number": 9}])
def test_finds_a_fork_of_kept_versions(change: dict[str, Any]) -> None:
    """Kept versions follow one another, numbered without a gap."""
    found = seen([1, 2, 3])
    versions = [found.versions[0] | change, *found.versions[1:]]  # type: ignore[operator]
    assert "forks" in broken(account(*three()), replace(found, versions=versions))


@pytest.mark.parametrize("card", [{"tokens_learned": 20}, {"turn": 4}])
def test_finds_counts_that_do_not_add_up(card: dict[str, Any]) -> None:
    """The session's counters are the sums of its receipts."""
    assert broken(account(*three()), seen([1, 2, 3], **card)) == {"counts"}


def test_finds_turns_that_are_not_numbered_on() -> None:
    """Each turn's number follows the one before, unless an edit went back."""
    told = [record(1), record(2, answer(2, turn=1)), record(3, answer(3, turn=2))]
    found = seen([1, 2, 3], turn=2)
    found = replace(found, turns=[turn | {"turn": max(1, turn["turn"] - 1)} for turn in found.turns])  # type: ignore[operator]

    assert "counts" in broken(account(*told), found)
    assert "counts" not in broken(account(*(replace(each, resends=True) for each in told)), found)


def test_finds_a_past_that_nobody_taught() -> None:
    """A new session's first turn is number 1."""
    found = seen([1, 2, 3], turn=4)
    found = replace(found, turns=[turn | {"turn": turn["turn"] + 1} for turn in found.turns])  # type: ignore[operator]
    told = [record(number, answer(number, turn=number + 1)) for number in (1, 2, 3)]
    assert broken(account(*told), found) == {"counts"}


def test_finds_replays_that_differ() -> None:
    """A repeated request has the same text, turn and tokens; and no other request has its version."""
    assert broken(account(record(1, answer(1), answer(1, is_replay=True))), seen([1])) == set()
    assert broken(account(record(1, answer(1), answer(1, text="no"))), seen([1])) == {"replays"}
    assert "replays" in broken(account(record(1), record(2, answer(1))), seen([1]))


def test_a_turn_that_only_read_is_no_commit() -> None:
    """A receipt that says why nothing was learned acknowledges no learning."""
    read = record(4, answer(4, version_before="v3", version_after="v3", not_learned="frozen"))
    assert broken(account(*three(), read), seen([1, 2, 3])) == set()


def test_a_fork_begins_at_its_birth() -> None:
    """A fork's own turns follow the version that it was born with, and its own list has only them."""
    told = account(record(3), births={NAME: Birth("v2", 2)})
    found = seen([2, 3])
    found = replace(
        found,
        turns=found.turns[:1],
        versions=[version | {"number": version["number"] + 1} for version in found.versions],  # type: ignore[operator]
    )
    assert broken(told, found) == set()
    assert "lost" in broken(replace(told, births={}), found)


def test_late_answers_leave_room() -> None:
    """A key may be forgotten after many commits, so a turn that waited longer may have been learned twice."""
    many = [*range(1, KEPT_REQUESTS + 10)]
    told = [record(number) for number in many[:-1]]
    slow, quick = record(many[-1], began=0.0), record(many[-1])

    assert broken(account(*told, slow), seen([*many, many[-1] + 1])) == set()
    assert "twice" in broken(account(*told, quick), seen([*many, many[-1] + 1]))


def test_finds_deleted_sessions_that_came_back() -> None:
    """What was deleted is not there; what it had learned is not looked for."""
    told = account(*three(), deleted={NAME})
    assert broken(told, Seen(None)) == set()
    assert broken(told, seen([1])) == {"risen"}


def test_finds_turns_that_nobody_answered() -> None:
    """A turn that was sent again and again, and never answered, is a fault; one whose process was killed is not."""
    assert broken(account(Record(NAME, "k1", "chat", "chat", 0.5, has_ended=True)), Seen(None)) == {"unsettled"}
    assert broken(account(Record(NAME, "k1", "chat", "chat", 0.5)), Seen(None)) == set()


def test_carries_what_users_saw() -> None:
    """Dishonest errors and faults that users noted are findings."""
    told = account(dishonest=["500 internal_error"] * 3, faults=[("foreign", "x"), ("surprises", "y")])
    findings = check_everything(told, {})

    assert findings.faults["dishonest"] == ["500 internal_error: 3 times"]
    assert findings.faults["foreign"] == ["x"] and findings.faults["surprises"] == ["y"]
    assert not findings.is_clean


def test_every_promise_can_be_broken() -> None:
    """No promise is listed that findings have no place for."""
    findings = check_everything(account(), {})
    add: Callable[[str, str], None] = findings.add
    for promise in PROMISES:
        add(promise, "x")

    assert all(faults == ["x"] for faults in findings.faults.values()) and len(PROMISES) == len(findings.faults)
