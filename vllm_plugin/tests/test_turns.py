"""The order of turns: one at a time in each session, states fetched early, every end lets the next begin."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from hope_vllm.turns import Phase, Turn, TurnBook

from hope_server.errors import InternalError, SessionBusy, SessionConflict, StateIncompatible


@dataclass
class Store:
    """Sessions whose loads and commits end when a test says so."""

    loads: list[tuple[str, Future[Any]]] = field(default_factory=list)
    commits: list[tuple[str, Future[Any]]] = field(default_factory=list)

    def load(self, session_id: str, ask: Any) -> Future[Any]:
        """Begin to load."""
        self.loads.append((session_id, Future()))
        return self.loads[-1][1]

    def commit(self, session_id: str, start: Any, shards: Sequence[Any], num_read: int, reply: Any) -> Future[Any]:
        """Begin to commit."""
        self.commits.append((session_id, Future()))
        return self.commits[-1][1]


def start(*, is_frozen: bool = False, answer: Any = None) -> Any:
    """What a session's turn goes on from."""
    return SimpleNamespace(state=None, num_tokens=0, card=SimpleNamespace(is_frozen=is_frozen), answer=answer)


def book_of(*sessions: str, max_queued: int = 4) -> tuple[TurnBook, Store, list[Turn]]:
    """A book with a turn for each of these sessions, called `0`, `1`, …."""
    store = Store()
    book = TurnBook(store, max_queued)
    for number, session in enumerate(sessions):
        book.begin(str(number), session)
    turns = [book.find(str(number)) for number in range(len(sessions))]
    return book, store, [turn for turn in turns if turn is not None]


def test_states_are_fetched_before_anybody_asks() -> None:
    """Two sessions' states are on their way as soon as their requests are there; a turn behind another's is not."""
    book, store, turns = book_of("a", "b", "a")

    assert [name for name, _ in store.loads] == ["a", "b"]
    assert not any(book.is_ready(turn) for turn in turns)
    store.loads[1][1].set_result(start())
    assert [book.is_ready(turn) for turn in turns] == [False, True, False]


def test_a_turn_begins_when_the_one_before_is_kept() -> None:
    """Its state is fetched after the commit, not before."""
    book, store, (first, second) = book_of("a", "a")
    store.loads[0][1].set_result(start())
    assert book.is_ready(first)

    book.commit(first, ["shard"])
    assert book.is_settling and book.take_settled() == [] and len(store.loads) == 1
    store.commits[0][1].set_result("kept")

    assert book.take_settled() == [(first, "kept")]
    assert [name for name, _ in store.loads] == ["a", "a"] and second.phase is Phase.LOADING
    assert not book.is_settling and book.find("0") is None


def test_a_turn_that_is_cut_off_lets_the_next_begin() -> None:
    """An abort in any phase: the next of the session loads; one behind it waits on."""
    book, store, (first, second, third) = book_of("a", "a", "a")

    book.end(second)
    assert len(store.loads) == 1
    book.end(first)

    assert len(store.loads) == 2 and third.phase is Phase.LOADING and book.find("1") is None


def test_a_state_that_cannot_be_used_refuses_the_turn() -> None:
    """The error is told once, and the turn is never ready."""
    book, store, (turn,) = book_of("a")
    error = StateIncompatible("another model")
    store.loads[0][1].set_exception(error)

    assert [(refusal.request_id, refusal.error) for refusal in book.take_refusals()] == [("0", error)]
    assert not book.is_ready(turn) and book.take_refusals() == []


def test_a_commit_that_fails_is_the_turns_outcome() -> None:
    """The error takes the place of the version, and the session goes on."""
    book, store, (first, second) = book_of("a", "a")
    store.loads[0][1].set_result(start())
    assert book.is_ready(first)
    book.commit(first, ["shard"])
    error = SessionConflict("raced")
    store.commits[0][1].set_exception(error)

    assert book.take_settled() == [(first, error)]
    assert second.phase is Phase.LOADING


def test_a_fault_of_our_own_is_an_error_too() -> None:
    """What is no HopeError becomes one, with its cause."""
    book, store, _ = book_of("a")
    store.loads[0][1].set_exception(ZeroDivisionError())

    (refusal,) = book.take_refusals()

    assert isinstance(refusal.error, InternalError) and isinstance(refusal.error.__cause__, ZeroDivisionError)


def test_too_many_turns_behind_one_are_refused() -> None:
    """Two may wait; the fourth turn of the session is told to come again."""
    book, _, turns = book_of("a", "a", "a", "a", "b", max_queued=2)

    (refusal,) = book.take_refusals()

    assert refusal.request_id == "3" and isinstance(refusal.error, SessionBusy) and len(turns) == 4


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_frozen_session_learns_nothing(is_frozen: bool) -> None:
    """Its turns are answered and not kept."""
    book, store, (turn,) = book_of("a")
    store.loads[0][1].set_result(start(is_frozen=is_frozen))

    assert book.is_ready(turn) and turn.learns is not is_frozen


def test_a_turn_that_was_answered_before_is_never_computed() -> None:
    """It is handed out once, to be answered so again; the next of its session begins when it has ended."""
    book, store, (first, second) = book_of("a", "a")
    store.loads[0][1].set_result(start(answer="as before"))

    assert not book.is_ready(first) and book.is_settling
    assert book.take_answered() == [first] and book.take_answered() == []
    book.end(first)
    assert second.phase is Phase.LOADING


def test_waiting_ends_when_there_is_news() -> None:
    """A load or a commit that ends wakes whoever waits for it; without either, waiting ends by itself."""
    book, store, (turn,) = book_of("a")
    assert book.is_waiting
    book.wait(0.01)
    store.loads[0][1].set_result(start())
    begin = monotonic()
    book.wait(30.0)
    assert monotonic() - begin < 10 and book.is_ready(turn) and not book.is_waiting

    book.commit(turn, ["shard"])
    assert book.is_waiting
    store.commits[0][1].set_result("kept")
    book.wait(30.0)
    assert monotonic() - begin < 10 and book.take_settled() == [(turn, "kept")]
