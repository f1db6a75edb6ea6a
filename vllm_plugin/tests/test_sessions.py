"""Sessions in an engine: one turn at a time, kept before the reply ends, let go where a turn is cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_process import Ask, EngineProcess
from reference import Session
from test_parity import LARGEST_DIFFERENCE, prompts

from hope_server.model.config import HopeConfig
from hope_server.model.params import Params

pytestmark = pytest.mark.engine

Toy = tuple[HopeConfig, Params]


def test_turns_of_one_session_follow_each_other(toy: Toy, engine: EngineProcess) -> None:
    """Three turns of one session that come at once are answered one after the other, each knowing those before."""
    asked = prompts(40, (30, 50, 10))

    replies = engine.ask(*(Ask(prompt, "queue") for prompt in asked))

    session = Session(*toy)
    assert [reply.order for reply in replies] == [0, 1, 2]
    for prompt, reply in zip(asked, replies, strict=True):
        assert session.largest_difference(prompt, reply.tokens, reply.logprobs) <= LARGEST_DIFFERENCE
    assert replies[-1].receipt is not None and replies[-1].receipt["num_tokens"] == session.num_tokens == 150


def test_a_waiting_session_holds_up_no_other(toy: Toy, engine: EngineProcess) -> None:
    """While turns of one session wait for each other, another session's turn is answered."""
    asked = prompts(41, (60, 60, 60, 4))
    names = ("slow", "slow", "slow", "quick")

    replies = engine.ask(*(Ask(prompt, name) for prompt, name in zip(asked, names, strict=True)))

    assert replies[3].order < replies[1].order < replies[2].order


def test_a_slow_store_holds_up_no_other_session(toy: Toy, engine: EngineProcess) -> None:
    """While one session's state is on its way, or its commit is under way, turns of others begin and end.

    Its load and its commit take seconds; ten turns of others take tenths.
    """
    first, *others = prompts(51, (20, 30, 30, 30, 30, 30, 30))

    slow, *quick = engine.ask(Ask(first, "turtle"), *(Ask(prompt, "hare", 5) for prompt in others[:4]))

    assert slow.order == 4 and [reply.order for reply in quick] == [0, 1, 2, 3]
    session = Session(*toy)
    assert session.largest_difference(first, slow.tokens, slow.logprobs) <= LARGEST_DIFFERENCE
    again, *quick = engine.ask(
        Ask(first, "turtle"), *(Ask(prompt, f"hare-{index}") for index, prompt in enumerate(others))
    )
    assert again.order == len(others) and again.receipt is not None
    assert session.largest_difference(first, again.tokens, again.logprobs) <= LARGEST_DIFFERENCE


def test_a_reply_ends_when_its_turn_is_in_the_store(engine: EngineProcess) -> None:
    """At a reply's last event a reader of the store finds the very version that the reply names."""
    replies = [engine.ask(Ask(prompt, "kept"))[0] for prompt in prompts(42, (20, 90))]

    assert all(reply.receipt and reply.receipt["version"] == reply.version_in_store for reply in replies)
    assert len({reply.version_in_store for reply in replies}) == 2


def test_an_abort_leaves_the_session_as_it_was(toy: Toy, engine: EngineProcess) -> None:
    """A turn whose client goes away is neither kept nor known to the next turn, which does not wait for it."""
    first, cut, next_one = prompts(43, (40, 40, 30))
    session = Session(*toy)
    before = engine.ask(Ask(first, "cut"))[0]
    session.turn(first, before.tokens)

    aborted, after = engine.ask(Ask(cut, "cut", abort_after=3), Ask(next_one, "cut"))

    assert aborted.finish is None
    assert session.largest_difference(next_one, after.tokens, after.logprobs) <= LARGEST_DIFFERENCE
    assert after.receipt is not None and after.receipt["num_tokens"] == session.num_tokens


def test_a_turn_may_read_only(toy: Toy, engine: EngineProcess) -> None:
    """In mode `read` a turn knows what the session knows and leaves it as it was."""
    first, question, again = prompts(44, (40, 30, 30))
    session = Session(*toy)
    taught = engine.ask(Ask(first, "reader"))[0]
    session.turn(first, taught.tokens)
    titans, num_tokens = dict(session.titans), session.num_tokens

    read = engine.ask(Ask(question, "reader", mode="read"))[0]

    assert session.largest_difference(question, read.tokens, read.logprobs) <= LARGEST_DIFFERENCE
    assert read.receipt is None and read.version_in_store == taught.version_in_store
    session.titans, session.num_tokens = titans, num_tokens
    after = engine.ask(Ask(again, "reader"))[0]
    assert session.largest_difference(again, after.tokens, after.logprobs) <= LARGEST_DIFFERENCE


def test_the_loser_of_a_race_learns_nothing(toy: Toy, engine: EngineProcess) -> None:
    """A turn during which another engine commits to its session ends with an error; the next goes on from that."""
    first, lost, next_one = prompts(45, (40, 20, 20))
    session = Session(*toy)
    taught = engine.ask(Ask(first, "raced"))[0]
    session.turn(first, taught.tokens)

    raced = engine.ask(Ask(lost, "raced", intrude_after=2))[0]

    assert raced.finish == "error" and '"session_conflict"' in raced.stop_reason
    assert raced.version_in_store not in (None, taught.version_in_store)
    after = engine.ask(Ask(next_one, "raced"))[0]
    assert session.largest_difference(next_one, after.tokens, after.logprobs) <= LARGEST_DIFFERENCE


def test_a_reply_that_stops_by_itself_is_kept(toy: Toy, engine: EngineProcess) -> None:
    """A reply that ends at a stop token, or with its first token, is learned with that token."""
    prompt, other = prompts(46, (30, 30))
    session = Session(*toy)
    plain = engine.ask(Ask(prompt, temperature=0))[0]
    stop = plain.tokens[4]
    place = plain.tokens.index(stop)

    stopped = engine.ask(Ask(prompt, "stops", temperature=0, extra={"stop_token_ids": [stop]}))[0]
    single = engine.ask(Ask(other, "stops", max_tokens=1))[0]

    assert stopped.finish == "stop" and stopped.tokens == plain.tokens[: place + 1]
    session.turn(prompt, stopped.tokens)
    assert session.largest_difference(other, single.tokens, single.logprobs) <= LARGEST_DIFFERENCE
    assert single.receipt is not None and single.receipt["num_tokens"] == session.num_tokens


def test_a_request_sent_again_is_learned_once(toy: Toy, engine: EngineProcess) -> None:
    """With a name of its own it is answered from what was kept; the session does not move, and goes on from there."""
    prompt, next_one = prompts(49, (40, 30))
    ask = Ask(prompt, "again", extra={"logprobs": None}, args={"hope_request": "r-1"})
    session = Session(*toy)

    first, second = engine.ask(ask)[0], engine.ask(ask)[0]
    reused = engine.ask(replace(ask, prompt=next_one))[0]

    assert second.tokens == first.tokens and second.finish == first.finish == "length"
    assert second.receipt == {"session_id": "again", "version": first.version_in_store, "replayed": True}
    assert second.version_in_store == first.version_in_store
    assert reused.finish == "error" and "idempotency_key_reused" in reused.stop_reason
    session.turn(prompt, first.tokens)
    after = engine.ask(Ask(next_one, "again"))[0]
    assert session.largest_difference(next_one, after.tokens, after.logprobs) <= LARGEST_DIFFERENCE


def test_a_turn_as_long_as_the_model_allows_is_kept(toy: Toy, engine: EngineProcess) -> None:
    """One place is left for the last token to be read, so the longest turn is one token shorter."""
    prompt = prompts(47, (490,))[0]
    session = Session(*toy)

    reply = engine.ask(Ask(prompt, "long", max_tokens=100))[0]

    assert reply.finish == "length" and len(reply.tokens) == 512 - 1 - 490
    assert session.largest_difference(prompt, reply.tokens, reply.logprobs) <= LARGEST_DIFFERENCE
    assert reply.receipt is not None and reply.receipt["num_tokens"] == 511


def test_sessions_outlive_a_killed_engine(toy: Toy, toy_folder: Path, tmp_path: Path) -> None:
    """An engine that is killed the moment a reply has ended: another one goes on from that turn."""
    store, asked = tmp_path / "sessions.db", prompts(48, (70, 33, 18, 90))
    names = ("ada", "bo")
    sessions = {name: Session(*toy) for name in names}
    for turn in (0, 1):
        with EngineProcess(toy_folder, store) as engine:
            own = asked[2 * turn : 2 * turn + 2]
            replies = engine.ask(*(Ask(prompt, name) for prompt, name in zip(own, names, strict=True)))
            engine.kill()
        for name, prompt, reply in zip(names, own, replies, strict=True):
            difference = sessions[name].largest_difference(prompt, reply.tokens, reply.logprobs)
            print(f"engine {turn}, {name}: largest difference of log-probabilities {difference:.1e}")
            assert difference <= LARGEST_DIFFERENCE
            assert reply.receipt is not None and reply.receipt["num_tokens"] == sessions[name].num_tokens
