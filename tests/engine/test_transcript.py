"""What a session has read already, for clients that send the whole history and for those that send the new message."""

from __future__ import annotations

import itertools

import pytest

from hope_server.engine.transcript import (
    EMPTY,
    MAX_MARKS,
    MAX_SYSTEMS,
    Conversation,
    canonical,
    chains,
    epoch_after,
    extend_chain,
    go_on,
    is_task_prompt,
    is_within,
    relate,
    shared_length,
    system_digest,
    without_reasoning,
)
from hope_server.engine.turn import Message, ToolCall

SYSTEM, OTHER_SYSTEM = Message("system", "Be brief."), Message("system", "Be long.")
ONE, REPLY, TWO = Message("user", "My cat is red."), Message("assistant", "Nice!"), Message("user", "And fat.")
SECOND, THREE = Message("assistant", "Oh."), Message("user", "Yes.")


def chain_of(*messages: Message) -> str:
    """The digest of a conversation."""
    return chains(messages)[-1]


def talk(*messages: Message) -> Conversation:
    """A session's conversation after these messages."""
    return Conversation().hear(messages)


def test_a_chain_depends_on_every_message_and_on_their_order() -> None:
    """All orders and all prefixes of a few messages have digests of their own; the empty one is EMPTY."""
    messages = [ONE, REPLY, TWO, Message("tool", "42")]
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


@pytest.mark.parametrize(
    "text",
    [
        "<think>Hm.\n\nWell.</think>\n\nNice!",
        "Hm.</think>Nice!",
        "<think>\n\n</think>\n\nNice!",
        "Nice!<think>what else",
        "Hm.</think>Nice!<think>a</think>",
    ],
)
def test_reasoning_is_no_part_of_a_reply(text: str) -> None:
    """Clients send replies back with or without what was thought; to the session it is the same conversation."""
    assert extend_chain("x", Message("assistant", text)) == extend_chain("x", REPLY)


def test_reasoning_marks_of_others_are_text() -> None:
    """A user may write about the marks."""
    assert canonical(Message("user", "What is <think>?</think>")) == "What is <think>?</think>"


def test_a_call_has_one_form() -> None:
    """As text, in parts, with other spaces in its arguments: one digest; another argument is another one."""
    spelled = Message("assistant", 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a":1}}\n</tool_call>')
    parted = Message("assistant", "Let me see.", (ToolCall("f", '{"a": 1}'),))
    other = Message("assistant", "Let me see.", (ToolCall("f", '{"a": 2}'),))
    assert chain_of(spelled) == chain_of(parted) != chain_of(other)
    assert without_reasoning(parted).content == canonical(spelled)


def test_only_what_needs_it_is_rewritten_before_it_is_read() -> None:
    """A plain reply is read as it was sent, spaces included."""
    plain = Message("assistant", " Nice! ")
    assert without_reasoning(plain) is plain
    assert without_reasoning(Message("assistant", "<think>Hm.</think> Nice!")) == REPLY


def test_system_messages_are_no_part_of_the_conversation() -> None:
    """Clients put the time of day into them; they are known by themselves."""
    assert chain_of(SYSTEM, ONE, OTHER_SYSTEM, REPLY) == chain_of(ONE, REPLY)
    developer = Message("developer", SYSTEM.content)
    assert system_digest(developer) == system_digest(SYSTEM)
    assert system_digest(ONE) is None


def test_a_conversation_is_stored_and_read_again() -> None:
    """All of it comes back from a version's meta; a version of an earlier build knows its end only."""
    told = Conversation().hear((SYSTEM, ONE, REPLY))
    assert Conversation.of(told.fields()) == told
    assert len(told.fields()["marks"]) == 2 * 8
    old = Conversation.of({"chain": told.chain, "systems": list(told.systems)})
    assert (old.chain, old.marks, old.epoch) == (told.chain, told.marks[-1:], "")
    assert Conversation.of({}) == Conversation()


def test_what_is_remembered_is_bounded() -> None:
    """The newest prefixes and system messages are kept."""
    told = Conversation().hear(Message(role, str(n)) for n in range(1000) for role in ("user", "system"))
    assert (len(told.marks), len(told.systems)) == (MAX_MARKS, MAX_SYSTEMS)
    assert told.marks[-1] == told.chain[:16]
    assert told.systems[-1] == system_digest(Message("system", "999"))


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_full_history_extends_what_the_session_knows(length: int) -> None:
    """A request that repeats the conversation is recognised at the length the session knows."""
    messages = (SYSTEM, ONE, REPLY, TWO)
    standing = relate((*messages, SECOND, THREE), talk(*messages[:length]), resends=False)
    assert (standing.relation, standing.length) == ("extends", length)


def test_a_conversation_of_a_build_that_counted_system_messages_is_known() -> None:
    """Sessions of earlier builds go on, and count as this build does from then on."""
    messages = (SYSTEM, ONE, REPLY, TWO)
    old = Conversation.of({"chain": chains(messages[:3], with_systems=True)[-1], "systems": [system_digest(SYSTEM)]})
    assert relate(messages, old, resends=False).relation == "extends"
    new, after = go_on(messages, old, 3, "extends")
    assert new == (TWO,)
    assert after.chain == chain_of(ONE, REPLY, TWO)


def test_a_new_message_alone_goes_on() -> None:
    """Of a client that sends only what is new, nothing is taken for history, also where it repeats the first words."""
    told = talk(ONE, REPLY)
    for message in (TWO, ONE):
        assert relate((message,), told, resends=False).relation == "apart"
        new, after = go_on((message,), told, 0, "apart")
        assert new == (message,)
        assert after.chain == chain_of(ONE, REPLY, message)


def test_a_client_that_resends_and_begins_again_wants_another_answer() -> None:
    """Its first message alone is a beginning of the conversation; another first message is no part of it."""
    told = talk(ONE, REPLY, TWO, SECOND)
    again = relate((ONE,), told, resends=True)
    assert (again.relation, again.length) == ("returns", 1)
    assert is_within((ONE,), told) and not is_within((TWO,), told)
    assert relate((TWO,), told, resends=True).relation == "apart"


def test_an_edited_message_returns_to_the_one_before() -> None:
    """The shared beginning ends where the histories differ."""
    told = talk(ONE, REPLY, TWO, SECOND)
    edited = relate((SYSTEM, ONE, REPLY, THREE), told, resends=False)
    assert (edited.relation, edited.length) == ("returns", 3)
    regenerated = relate((ONE, REPLY, TWO), told, resends=False)
    assert (regenerated.relation, regenerated.length) == ("returns", 3)


def test_a_conversation_whose_last_word_the_assistant_has_holds_nothing_new() -> None:
    """There is nothing to answer."""
    assert relate((ONE, REPLY), talk(ONE, REPLY), resends=True).relation == "repeats"


def test_a_history_that_is_not_known_is_read_from_its_last_reply_on() -> None:
    """It was cut, or belongs to another conversation; its own beginning is what the session goes by from then on."""
    told = talk(ONE, REPLY)
    messages = (Message("user", "cut"), SECOND, TWO)
    assert relate(messages, told, resends=False).relation == "parts"
    new, after = go_on(messages, told, 0, "parts")
    assert new == (TWO,)
    assert after.chain == chain_of(*messages)
    assert relate((*messages, REPLY, THREE), after.hear((REPLY,)), resends=False).relation == "extends"


def test_a_past_that_is_not_kept_is_read_on_from_what_is_shared() -> None:
    """Where the state cannot go back, what follows the last common message is read, once."""
    told = talk(ONE, REPLY, TWO, SECOND)
    new, after = go_on((ONE, REPLY, THREE), told, 2, "returns")
    assert new == (THREE,)
    assert after.chain == chain_of(ONE, REPLY, THREE)
    again, _ = go_on((ONE, REPLY, TWO), told, 3, "returns")
    assert again == (TWO,)


def test_a_first_conversation_is_read_whole_whatever_replies_it_has() -> None:
    """A session that has seen no chat takes in an imported history from its start."""
    assert relate((ONE, REPLY, TWO), Conversation(), resends=False).relation == "begins"
    assert go_on((ONE, REPLY, TWO), Conversation(), 0, "begins")[0] == (ONE, REPLY, TWO)


def test_a_system_message_is_read_once() -> None:
    """Clients repeat the system message with each request; one that was never given is new wherever it stands."""
    told = talk(SYSTEM, ONE, REPLY)
    for messages in ((SYSTEM, TWO), (Message("developer", "Be brief."), TWO), (SYSTEM, ONE, REPLY, TWO)):
        standing = relate(messages, told, resends=False)
        assert go_on(messages, told, standing.length, standing.relation)[0] == (TWO,)
    for messages in ((OTHER_SYSTEM, TWO), (OTHER_SYSTEM, ONE, REPLY, TWO)):
        standing = relate(messages, told, resends=False)
        new, after = go_on(messages, told, standing.length, standing.relation)
        assert new == (OTHER_SYSTEM, TWO)
        assert after.systems == (*told.systems, system_digest(OTHER_SYSTEM))


def test_a_session_learns_of_its_client_that_it_resends() -> None:
    """Once a history with a reply was repeated, a request that repeats nothing is suspect; a new message alone is not
    what such a client sends.
    """
    told = talk(ONE, REPLY)
    assert not told.resends
    _, after = go_on((ONE, REPLY, TWO), told, 2, "extends")
    assert after.resends
    assert not go_on((THREE,), after, 0, "apart")[1].resends


def test_the_whole_conversation_is_found_behind_system_messages() -> None:
    """The longest beginning counts; a conversation that is none is nowhere."""
    assert shared_length((ONE, REPLY, SYSTEM, TWO), talk(ONE, REPLY)) == 3
    assert shared_length((ONE,), Conversation()) == 0


def test_prompts_for_titles_are_known() -> None:
    """Open WebUI's tasks carry the history as text."""
    task = Message("user", "### Task:\nGenerate a title.\n### Chat History:\n<chat_history>\nUSER: a\n</chat_history>")
    assert is_task_prompt((task,)) and is_task_prompt((SYSTEM, task))
    assert not is_task_prompt((task, REPLY, TWO))
    assert not is_task_prompt((Message("user", "### Task: clean up"),))


def test_an_epoch_depends_on_all_that_was_taught() -> None:
    """The same text after the same past is the same epoch; anything else is another."""
    assert epoch_after("", "a") == epoch_after("", "a")
    assert len({"", epoch_after("", "a"), epoch_after("", "b"), epoch_after(epoch_after("", "a"), "a")}) == 4
