"""What a session has read already, for clients that send the whole history and for those that send the new message."""

from __future__ import annotations

import itertools

import pytest

from hope_server.engine.transcript import EMPTY, chains, extend_chain, find_known, system_digest, unread
from hope_server.engine.turn import Message

SYSTEM, OTHER_SYSTEM = Message("system", "Be brief."), Message("system", "Be long.")
ONE, REPLY, TWO = Message("user", "My cat is red."), Message("assistant", "Nice!"), Message("user", "And fat.")


def chain_of(*messages: Message) -> str:
    """The digest of a conversation."""
    return chains(messages)[-1]


def test_a_chain_depends_on_every_message_and_on_their_order() -> None:
    """All orders and all prefixes of a few messages have digests of their own; the empty one is EMPTY."""
    messages = [ONE, REPLY, TWO, SYSTEM]
    found = {chain_of(*order) for n in range(5) for order in itertools.permutations(messages, n)}
    assert len(found) == 65
    assert chain_of() == EMPTY


def test_message_boundaries_are_part_of_the_digest() -> None:
    """Moving text from one message to the next, or from a content to a role, is another conversation."""
    texts = [
        [Message("user", "ab"), Message("user", "c")],
        [Message("user", "a"), Message("user", "bc")],
        [Message("user", "a\x00user\x002\x00bc")],
        [Message("user", "abc")],
        [Message("assistant", "abc")],
    ]
    assert len({chain_of(*messages) for messages in texts}) == 5


@pytest.mark.parametrize("same", [Message("user", "  My cat is red.\n"), Message("user", "My cat is red.\t")])
def test_space_around_a_message_is_not_part_of_it(same: Message) -> None:
    """Clients strip messages or not; to the session it is the same conversation."""
    assert extend_chain("x", same) == extend_chain("x", ONE)


def test_developer_is_another_word_for_system() -> None:
    """Both roles give one digest, in the chain and as a system message."""
    developer = Message("developer", SYSTEM.content)
    assert extend_chain(EMPTY, developer) == extend_chain(EMPTY, SYSTEM)
    assert system_digest(developer) == system_digest(SYSTEM)
    assert system_digest(ONE) is None


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_known_beginning_is_found(length: int) -> None:
    """A request that repeats the conversation is recognised at the length the session knows."""
    messages = (SYSTEM, ONE, REPLY, TWO)
    chain = chain_of(*messages[:length])
    assert find_known(messages, [chain]) == (chain, length)


def test_a_conversation_with_nothing_new_is_not_a_beginning() -> None:
    """At least one message must be unread."""
    assert find_known((ONE, REPLY), [chain_of(ONE, REPLY)]) is None


def test_the_first_known_chain_wins() -> None:
    """Newer versions are asked for first, even where an older one fits as well."""
    messages = (ONE, REPLY, TWO)
    newer, older = chain_of(ONE, REPLY), chain_of(ONE)
    assert find_known(messages, ["unrelated", newer, older]) == (newer, 2)
    assert find_known(messages, [older, newer]) == (older, 1)


def test_the_empty_conversation_counts_only_alone() -> None:
    """Every request begins with nothing, so that says nothing as long as something else is known."""
    assert find_known((ONE,), [EMPTY]) == (EMPTY, 0)
    assert find_known((ONE,), ["unrelated", EMPTY]) is None


def test_a_full_history_leaves_what_follows_the_known_part() -> None:
    """Messages already read are not read again, and the chain is that of the whole conversation."""
    messages = (SYSTEM, ONE, REPLY, TWO)
    new = unread(messages, chain_of(*messages[:3]), 3, ())
    assert new.messages == (TWO,)
    assert new.chain == chain_of(*messages)


def test_only_the_new_message_continues_the_conversation() -> None:
    """A request with one message gives the chain that the full history would give."""
    new = unread((TWO,), chain_of(ONE, REPLY), None, ())
    assert new.messages == (TWO,)
    assert new.chain == chain_of(ONE, REPLY, TWO)


def test_a_history_that_was_cut_starts_behind_its_last_reply() -> None:
    """Where the beginning is unknown, what precedes the last assistant message counts as read."""
    new = unread((Message("user", "cut"), REPLY, TWO), chain_of(ONE, REPLY), None, ())
    assert new.messages == (TWO,)


def test_a_first_conversation_is_read_whole_whatever_replies_it_has() -> None:
    """A session that has seen no chat takes in an imported history from its start."""
    assert unread((ONE, REPLY, TWO), EMPTY, None, ()).messages == (ONE, REPLY, TWO)


def test_a_last_message_of_the_assistant_is_new() -> None:
    """A reply that is to be continued is not taken for the end of what was read."""
    assert unread((TWO, REPLY), chain_of(ONE), None, ()).messages == (TWO, REPLY)


def test_a_system_message_is_read_once() -> None:
    """Clients repeat the system message with each new message; only one that was never given is new."""
    known = [system_digest(SYSTEM)]
    assert unread((SYSTEM, TWO), chain_of(SYSTEM, ONE, REPLY), None, known).messages == (TWO,)
    changed = unread((OTHER_SYSTEM, TWO), chain_of(SYSTEM, ONE, REPLY), None, known)
    assert changed.messages == (OTHER_SYSTEM, TWO)
    assert unread((Message("developer", "Be brief."), TWO), chain_of(ONE), None, known).messages == (TWO,)


def test_a_system_message_alone_that_was_read_leaves_nothing() -> None:
    """The planner refuses a request in which nothing is new."""
    new = unread((SYSTEM,), chain_of(SYSTEM), None, [system_digest(SYSTEM)])
    assert (new.messages, new.chain) == ((), chain_of(SYSTEM))
