"""Each scenario does what it says, and the checks find what a server does wrong while it does."""

from __future__ import annotations

import pytest

from loadtests.courier import TurnRefused
from loadtests.plan import SCENARIOS
from loadtests.scenarios_with_pasts import ALL
from tests.loadtests.conftest import Load
from tests.loadtests.fake_server import FakeServer


def test_every_scenario_is_named_in_the_plan() -> None:
    """What can be asked for is what there is."""
    assert set(ALL) == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_server_that_keeps_its_promises_passes(load: Load, name: str) -> None:
    """Thirty steps of any scenario leave nothing to find."""
    load.run(name, 30)
    findings = load.checked()

    assert findings.faults == {promise: [] for promise in findings.faults}
    assert findings.num_acknowledged > 5 and findings.num_unknown == 0


def test_places_of_two_tenants_have_sessions_of_the_same_names(load: Load) -> None:
    """The same id in two tenants is two sessions."""
    ours, theirs = load.run("chat", 2, number=0), load.run("chat", 2, number=1)

    assert [each.session for each in ours.conversations] == [each.session for each in theirs.conversations]
    assert len(load.account().sessions()) == 4
    assert load.broken() == set()


def test_hot_users_share_a_session(load: Load) -> None:
    """Every second user is in the same session, whichever tenant it would have."""
    load.run("hot", 3, number=0)
    load.run("hot", 3, number=2)

    assert [name[1] for name in load.account().sessions()] == ["hot-0"]


def test_a_document_is_fed_in_pieces_and_asked_about(load: Load, server: FakeServer) -> None:
    """Three pieces of nine tokens are more than twenty; then comes a question, then the next document."""
    place = load.run("learn", 5)

    assert server.requests == {"learn": 4, "chat": 1}
    assert place.conversations[0].session == "learn-0-1"


def test_disconnects_leave_and_come_back(load: Load) -> None:
    """Turns that were left in mid-stream are acknowledged in the end, each once."""
    load.run("disconnect", 30)
    account = load.account()

    assert account.counts["left in mid-stream"] > 3 and account.counts["left before the answer"] > 0
    assert len(account.turns) == 30 and not any(record.is_open for record in account.turns.values())


def test_repeated_requests_have_two_answers(load: Load) -> None:
    """Requests sent again, and those sent twice at once, are in the ledger with both their answers."""
    load.run("retry", 12)
    account = load.account()
    twice = [record for record in account.turns.values() if len(record.answers) == 2]

    repeated = account.counts["sent again after the answer"] + account.counts["sent twice at once"]
    assert repeated > 4 and len(twice) == repeated
    assert all(record.answers[0].is_replay != record.answers[1].is_replay for record in twice)


def test_edits_resend_a_changed_past(load: Load) -> None:
    """Every third turn has fewer messages than the one before would make it have."""
    load.run("edit", 30)
    account = load.account()

    assert account.counts["edited an earlier message"] > 2
    assert all(record.resends for record in account.turns.values())


def test_forks_are_born_and_deleted(load: Load) -> None:
    """Forks begin at what was acknowledged last; old ones are deleted."""
    load.run("fork", 80)
    account = load.account()

    assert len(account.births) > 4 and len(account.deleted) > 0
    assert account.faults == []


def test_a_turn_cut_off_is_taken_up_by_the_next_user(load: Load, server: FakeServer) -> None:
    """A user that is stopped in the middle of a turn leaves it to whoever takes its place."""
    place = load.place("chat")
    server.faults.script = ["cut"]
    turn = place.next_turn(place.conversations[1])
    place.conversations[1].pending = turn
    with pytest.raises(TimeoutError):
        place.courier.take(turn, seconds=0.0)
    assert load.account().turns[turn.key].turn == turn

    place.step()
    assert load.account().turns[turn.key].answers[0].is_replay
    assert place.conversations[1].pending is None


def test_a_refusal_for_good_ends_the_turn(load: Load, server: FakeServer) -> None:
    """A 400 is not sent again, and no load explains it."""
    place = load.place("chat")
    server.faults.script = ["400"]
    with pytest.raises(TurnRefused):
        place.step()

    assert server.requests["chat"] == 1
    assert all(conversation.pending is None for conversation in place.conversations)
    assert load.broken() == {"surprises"}


# -- what servers do wrong ---


def test_finds_lost_turns(load: Load, server: FakeServer) -> None:
    """A server that forgets every third turn of a session that it acknowledged."""
    server.faults.loses_every = 3
    load.run("chat", 12)

    assert "lost" in load.broken()


def test_finds_turns_learned_twice(load: Load, server: FakeServer) -> None:
    """A server that does not know a key again."""
    server.faults.forgets_keys = True
    load.run("retry", 8)

    assert "twice" in load.broken()


def test_finds_a_turn_learned_twice_behind_a_cut_stream(load: Load, server: FakeServer) -> None:
    """The first try was kept and its answer lost; the second is learned again, and only one was acknowledged."""
    server.faults.forgets_keys = True
    server.faults.script = ["cut"]
    load.run("chat", 2)

    assert "twice" in load.broken()


def test_finds_other_tenants_sessions(load: Load, server: FakeServer) -> None:
    """A server that shows a session to whoever knows its name."""
    server.faults.knows_no_tenants = True
    load.run("tenants", 8, number=1)
    load.run("tenants", 20, number=0)

    assert "foreign" in load.broken()


def test_finds_deleted_sessions(load: Load, server: FakeServer) -> None:
    """A server that says that it deleted a session and did not."""
    server.faults.keeps_deleted = True
    load.run("fork", 80)

    assert load.broken() == {"risen"}


@pytest.mark.parametrize("word", ["500", "502", "507", "internal"])
def test_finds_dishonest_errors(load: Load, server: FakeServer, word: str) -> None:
    """A 5xx that is no 503, and a fault of the server inside a stream, count although the turn is learned later."""
    server.faults.script = [word]
    load.run("chat", 2)

    assert load.broken() == {"dishonest"}
    assert load.account().refusals.total() == 1


@pytest.mark.parametrize("word", ["503", "429", "reset", "cut", "cut before"])
def test_honest_errors_are_retried(load: Load, server: FakeServer, word: str) -> None:
    """What says when to come back, and connections that break, cost a try and break no promise."""
    server.faults.script = [word]
    load.run("chat", 2)

    assert load.broken() == set()
    assert load.account().refusals.total() == 1 and server.requests["chat"] == 3


def test_finds_streams_without_a_receipt(load: Load, server: FakeServer) -> None:
    """[DONE] without a receipt acknowledges nothing, and is no answer that a load explains."""
    server.faults.has_receipts = False
    place = load.place("chat")
    turn = place.next_turn(place.conversations[0])
    with pytest.raises(TimeoutError):
        place.courier.take(turn, seconds=0.0)

    assert {"surprises", "unsettled"} <= load.broken()


def test_a_server_that_answers_from_an_older_version_is_found(load: Load, server: FakeServer) -> None:
    """A replica with an old copy of a session in memory would answer so."""
    server.faults.reads_behind = 1
    load.run("look", 3)

    assert load.broken() == {"stale"}
