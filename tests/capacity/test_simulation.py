"""The simulated server beside what can be reckoned by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hope_server.capacity.constants import Constants
from hope_server.capacity.simulated_server import Clock, SimulatedServer, SimulatedSession, SimulatedTurn
from hope_server.capacity.simulation import TurnSize, Users, simulate

# Writes a token of up to 8 replies in 10 ms, reads a token in 1 ms, completes no chunk; nothing else takes time.
FREE = Constants(
    "m", "m", "c", 1, {1: 0.01, 8: 0.01}, 0.001, 0.001, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1e6, 1e6, 1e6, chunk_tokens=10**9
)


def users(count: int, *, sessions: int = 1, taught: float = 0.0, think_seconds: float = 1.0) -> Users:
    """Users in a session each, prompts of 100 tokens and replies of 101, a second of thinking."""
    return Users(count, sessions, (TurnSize(100, 101, taught),), think_seconds)


def test_one_user_waits_for_prompt_and_reply_alone() -> None:
    """100 ms of reading, then 100 steps of 10 ms."""
    seen = simulate([users(1)], FREE, seconds=200, warm_up=10)

    assert seen.mean_answer_seconds == pytest.approx(1.1, rel=0.02)
    assert sum(seen.ttft_seconds) / len(seen.ttft_seconds) == pytest.approx(0.1, rel=0.1)
    assert seen.turns_per_second == pytest.approx(1 / 2.1, rel=0.15)


def test_a_token_that_completes_a_chunk_takes_the_time_of_the_chunk() -> None:
    """Read whole and learned from, be it a prompt's or a reply's; what completes none is read as it is."""
    chunks = replace(FREE, read_token_seconds=0.002, chunk_tokens=64)
    clock = Clock()
    server = SimulatedServer(chunks, clock, 0.0)
    turn = SimulatedTurn(SimulatedSession(0), 100, 31, 0.0, 0.0, end=lambda _: None)
    server.submit(turn)
    clock.run_due()
    parts = []
    while turn.reply > 0:
        parts.append(server.begin())
        clock.now += parts[-1]
        server.end()

    # 64 tokens of the prompt and its other 36; the first token is theirs, and the 28th completes the next chunk.
    assert parts == pytest.approx([0.128, 0.036, *[0.01] * 26, 0.128, *[0.01] * 3])
    assert turn.first == pytest.approx(0.164)


def test_sessions_in_order_have_their_turns_one_after_the_other() -> None:
    """Else the same one comes back by chance, and has a block to study before it is its turn."""
    kind = replace(users(1, sessions=4, think_seconds=0.0), is_in_order=True)
    hot = simulate([kind], replace(FREE, num_slots=4), seconds=100)
    host = simulate([kind], replace(FREE, num_slots=3), seconds=100)

    assert hot.restores["new"] == 4 and hot.restores["host"] == 0
    assert host.restores["new"] == 4 and host.restores["hot"] == 0


def test_turns_are_of_the_sizes_that_are_given() -> None:
    """Half of them with replies of 101 tokens, half of 301: 2.1 s in the middle, and either 1.1 or 3.1 each."""
    kind = Users(1, 1, (TurnSize(100, 101), TurnSize(100, 301)), 1.0)
    seen = simulate([kind], FREE, seconds=2000, warm_up=10)

    assert {round(answer, 1) for answer in seen.answer_seconds} <= {1.1, 3.1}
    assert seen.mean_answer_seconds == pytest.approx(2.1, rel=0.05)
    assert seen.num_tokens == pytest.approx(201 * seen.num_turns, rel=0.05)


def test_first_turns_have_sizes_of_their_own() -> None:
    """Each of four sessions begins with a reply of 301 tokens, which no later turn has."""
    kind = Users(1, 4, (TurnSize(100, 101),), 1.0, is_in_order=True, first_turns=(TurnSize(100, 301),))
    seen = simulate([kind], FREE, seconds=200, warm_up=0)

    assert [round(answer, 1) for answer in seen.answer_seconds[:6]] == [3.1] * 4 + [1.1] * 2
    assert {round(answer, 1) for answer in seen.answer_seconds[4:]} == {1.1}


def test_replies_are_written_together() -> None:
    """Eight users whose steps cost what one's does are served nearly eight times as fast as one."""
    one = simulate([users(1, think_seconds=0.0)], FREE, seconds=200, warm_up=10)
    eight = simulate([users(8, think_seconds=0.0)], FREE, seconds=200, warm_up=10)

    assert 4 < eight.turns_per_second / one.turns_per_second < 8


def test_turns_beyond_the_slots_wait() -> None:
    """Twice as many users as slots: each waits about as long again as it is served."""
    few = simulate([users(8, think_seconds=0.0)], FREE, seconds=300, warm_up=20)
    many = simulate([users(16, think_seconds=0.0)], FREE, seconds=300, warm_up=20)

    assert many.turns_per_second == pytest.approx(few.turns_per_second, rel=0.1)
    assert many.mean_answer_seconds == pytest.approx(2 * few.mean_answer_seconds, rel=0.1)


def test_what_a_turn_takes_outside_of_the_engine_holds_nobody_else_up() -> None:
    """Half a second of HTTP and template before each turn: its own first token waits, and eight users as little."""
    slow = replace(FREE, turn_seconds=0.5)
    for count in (1, 8):
        there, beside = (simulate([users(count)], each, seconds=200, warm_up=10) for each in (FREE, slow))
        later = sum(beside.ttft_seconds) / len(beside.ttft_seconds) - sum(there.ttft_seconds) / len(there.ttft_seconds)
        assert later == pytest.approx(0.5, abs=0.1)


def test_servers_with_cores_of_their_own_add_up_and_shared_cores_do_not() -> None:
    """Three saturated servers: three times the turns on three cores, as many as one's on one core."""
    one = simulate([users(16, think_seconds=0.0)], FREE, seconds=200, warm_up=20)
    apart = simulate([users(48, think_seconds=0.0)], FREE, num_servers=3, seconds=200, warm_up=20)
    shared = simulate([users(48, think_seconds=0.0)], FREE, num_servers=3, num_cores=1, seconds=200, warm_up=20)

    assert apart.turns_per_second == pytest.approx(3 * one.turns_per_second, rel=0.15)
    assert shared.turns_per_second == pytest.approx(one.turns_per_second, rel=0.15)


def test_beside_an_answer_study_has_its_share_and_the_rest_of_it_in_pauses() -> None:
    """Half a second of study a turn: a user who thinks waits for 0.15 of the time, one who does not for all of it."""
    studies = replace(FREE, study_seconds=0.01, study_token_seconds=0.01)
    thinks = simulate([users(1, taught=50.0, think_seconds=5.0)], studies, seconds=1000, warm_up=20)
    hurries = simulate([users(1, taught=50.0, think_seconds=0.0)], studies, seconds=1000, warm_up=20)

    assert 1.1 < thinks.mean_answer_seconds < 1.1 / 0.85 * 1.06
    assert hurries.mean_answer_seconds == pytest.approx(1.6, rel=0.02)


def test_what_is_studied_takes_the_time_that_it_takes() -> None:
    """One user, a block of 256 tokens studied every second turn or so: the server's work is the sum of both."""
    studies = replace(FREE, study_seconds=0.05, study_token_seconds=0.01)
    seen = simulate([users(1, taught=50.0)], studies, seconds=1000, warm_up=0)
    work = seen.num_turns * (1.1 + 50 * 0.01)

    assert seen.busy * 1000 == pytest.approx(work, rel=0.05)


def test_states_come_from_where_they_would_lie() -> None:
    """Few sessions stay in slots, more in host memory, the rest in the store."""
    hot = simulate([users(4)], FREE, seconds=200)
    host = simulate([users(4, sessions=20)], FREE, seconds=200)
    store = simulate([users(4, sessions=20)], FREE, seconds=200, host_bytes=0)

    assert hot.restores["host"] == hot.restores["store"] == 0 and hot.restores["hot"] > 100
    assert host.restores["host"] > host.restores["hot"] > 0 and host.restores["store"] == 0
    assert store.restores["store"] > 0 and store.restores["host"] == 0


def test_a_slow_store_delays_who_comes_back_and_nobody_else() -> None:
    """A restore of a second is waited for by its own turn."""
    slow = replace(FREE, restore_seconds=1.0)
    seen = simulate([users(1, sessions=40)], slow, seconds=400, host_bytes=0)
    near = simulate([users(1, sessions=1)], slow, seconds=400, host_bytes=0)

    assert near.mean_answer_seconds == pytest.approx(1.1, rel=0.02)
    assert near.mean_answer_seconds + 0.5 < seen.mean_answer_seconds < near.mean_answer_seconds + 1.0


def test_a_first_token_does_not_wait_for_the_study_of_its_own_round() -> None:
    """A round reads a prompt's last chunk, then studies for half a second: the first token is there in between."""
    clock = Clock()
    server = SimulatedServer(replace(FREE, study_seconds=0.5), clock, 0.0)
    turn = SimulatedTurn(SimulatedSession(0, study=1.0, whole_study=8.0, due=1000), 60, 5, 0.0, 0.0, end=lambda _: None)
    server.submit(turn)
    clock.run_due()
    parts = []
    for _ in range(2):
        parts.append(server.begin())
        clock.now += parts[-1]
        server.end()

    assert parts[0] == pytest.approx(0.06)
    assert turn.first == pytest.approx(0.06)
    assert parts[1] == 0.5


def test_a_study_that_has_begun_goes_on_in_the_background_until_it_is_done() -> None:
    """Two sessions have a second of study each: the one that has begun is done before the other begins."""
    clock = Clock()
    server = SimulatedServer(replace(FREE, study_seconds=0.25), clock, 0.0)
    untouched, begun = (SimulatedSession(number, study=1.0, whole_study=1.0, due=1000) for number in range(2))
    begun.study = 0.75
    server._idle.update({0: untouched, 1: begun})
    left = []
    for _ in range(8):
        clock.now += server.begin()
        server.end()
        left.append((untouched.study, begun.study))

    half = next(place for place, (first, _) in enumerate(left) if first != 1.0)
    assert left[half - 1] == (1.0, 0.0)
    assert all(second == 0.0 for _, second in left[half:])


def test_in_a_turns_slot_no_study_begins_but_one_that_has_begun_goes_on() -> None:
    """Beside replies without an end: what a session has begun is done, and what another has not is left."""
    clock = Clock()
    server = SimulatedServer(replace(FREE, study_seconds=0.25), clock, 0.0)
    whole, begun = (
        SimulatedSession(number, study=study, whole_study=1.0, due=10**6) for number, study in ((0, 1.0), (1, 0.5))
    )
    for session in (whole, begun):
        server.submit(SimulatedTurn(session, 1, 10**6, 0.0, 0.0, end=lambda _: None))
    clock.run_due()
    while clock.now < 20.0:
        clock.now += server.begin()
        server.end()

    assert (whole.study, begun.study) == (1.0, 0.0)


@pytest.mark.parametrize(("seconds", "part"), [(8.0, 0.5), (8.1, 8.1 / 17), (4.0, 0.5), (1.6, 0.2), (0.0, 0.0)])
def test_short_studies_have_short_parts(seconds: float, part: float) -> None:
    """Of eight passes each is a part at least; what is longer than a part may be is cut into more."""
    assert replace(FREE, study_seconds=0.5).study_part(seconds) == pytest.approx(part)


def test_one_seed_is_one_outcome() -> None:
    """The same users with the same seed see the same."""
    assert simulate([users(5)], FREE, seconds=100, seed=3) == simulate([users(5)], FREE, seconds=100, seed=3)
