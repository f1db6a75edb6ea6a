"""Where a chat goes on from: the newest version, an older one, or the state before the first message."""

from __future__ import annotations

from typing import Any

import pytest
from hope_memory.protocol import CommitInfo, SessionId, SessionRecord

from hope_server.engine.paths import Path, find_path
from hope_server.engine.session_card import SessionCard
from hope_server.engine.transcript import Conversation, epoch_after
from hope_server.engine.turn import ChatRequest, MemoryOptions, Message, SessionKey, Tool, ToolUse
from hope_server.errors import InvalidRequest

pytestmark = pytest.mark.anyio
KEY = SessionKey("t", "ada")
ONE, A, TWO, B, THREE = (
    Message(role, text) for role, text in zip(("user", "assistant") * 3, ("1", "a", "2", "b", "3"), strict=False)
)
EDIT = Message("user", "2!")
TOOLS = ToolUse((Tool("f"),))


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


def version(name: str, number: int, *messages: Message, epoch: str = "", **meta: Any) -> CommitInfo:
    """A version after these messages."""
    talk = Conversation(epoch=epoch).hear(messages)
    return CommitInfo(name, None, number, 0.0, 0, {"turn": number, **talk.fields(), **meta})


V1, V2 = version("v1", 1, ONE, A), version("v2", 2, ONE, A, TWO, B)


async def path(*messages: Message, kept: tuple[CommitInfo, ...] = (V2, V1), **changes: Any) -> Path:
    """The path of a request in a session of these versions, newest first."""

    async def versions() -> list[CommitInfo]:
        return list(kept)

    record = SessionRecord(SessionId("t", "ada"), 0.0, 0.0, kept[0] if kept else None)
    memory = MemoryOptions(**changes.pop("memory", {}))
    return await find_path(ChatRequest(messages, session=KEY, memory=memory, **changes), record, versions)


@pytest.mark.parametrize(
    ("messages", "base", "new"),
    [
        ((ONE, A, TWO, B, THREE), "v2", (THREE,)),
        ((THREE,), "v2", (THREE,)),
        ((ONE, A, EDIT), "v1", (EDIT,)),
        ((ONE, A, TWO), "v1", (TWO,)),
        ((ONE, A, EDIT, B, THREE), "v1", (EDIT, B, THREE)),
    ],
)
async def test_the_base_is_where_request_and_session_agree(
    messages: tuple[Message, ...], base: str, new: tuple[Message, ...]
) -> None:
    """What follows is new, and the conversation afterwards is the client's."""
    found = await path(*messages)
    assert found.base is not None
    assert (found.base.version, found.messages, found.is_continuing) == (base, new, True)
    expected = (ONE, A, TWO, B, THREE) if messages == (THREE,) else messages
    assert found.conversation.chain == Conversation().hear(expected).chain


async def test_the_first_answer_is_asked_for_again() -> None:
    """A session that begins with the first message goes back to nothing, or to what it had learned before it."""
    fresh = await path(ONE, resends_history=True)
    assert (fresh.base, fresh.messages, fresh.is_continuing) == (None, (ONE,), False)
    epoch = epoch_after("", "a book")
    learned = version("v0", 1, epoch=epoch)
    kept = (version("v1", 2, ONE, A, epoch=epoch), learned)
    found = await path(ONE, kept=kept, resends_history=True)
    assert (found.base, found.is_continuing, found.conversation.epoch) == (learned, False, epoch)


async def test_a_session_whose_beginning_is_gone_does_not_go_back_to_nothing() -> None:
    """A fork, or a session whose first versions are not kept, has a past that nothing holds."""
    found = await path(ONE, kept=(version("v9", 9, ONE, A),), resends_history=True)
    assert found.base is not None
    assert (found.base.version, found.messages) == ("v9", (ONE,))


async def test_what_was_taught_since_is_not_undone() -> None:
    """Versions of another epoch are no place to go back to."""
    found = await path(ONE, A, EDIT, kept=(version("v3", 3, ONE, A, TWO, B, epoch="e"), V2, V1))
    assert found.base is not None
    assert (found.base.version, found.messages) == ("v3", (EDIT,))


async def test_why_a_turn_does_not_learn() -> None:
    """Frozen before all else; beside the conversation only where the caller left it open."""
    frozen = (version("v2", 2, ONE, A, TWO, B, **SessionCard(is_frozen=True).fields()), V1)
    aside = {"resends_history": True, "may_be_side": True}
    assert (await path(THREE, kept=frozen)).not_learned == "frozen"
    assert (await path(THREE, kept=frozen, memory={"mode": "read"})).not_learned is None
    assert (await path(THREE, **aside)).not_learned == "side_request"
    assert (await path(THREE, may_be_side=True)).not_learned is None
    assert (await path(ONE, A, TWO, B, THREE, **aside)).not_learned is None
    assert (await path(THREE, **aside, memory={"mode": "read"})).not_learned is None


async def test_tools_join_the_system_message_of_a_beginning() -> None:
    """Many templates have room for one; later they are a message of their own, once."""
    system = Message("system", "Be brief.")
    begun = await path(system, ONE, kept=(), tool_use=TOOLS)
    assert [message.role for message in begun.messages] == ["system", "user"]
    assert begun.messages[0].content.startswith("Be brief.\n\nYou may call")
    assert len(begun.conversation.systems) == 2
    later = await path(THREE, tool_use=TOOLS)
    assert [message.role for message in later.messages] == ["system", "user"]
    kept = (CommitInfo("v3", None, 3, 0.0, 0, {"turn": 3, **later.conversation.hear((B,)).fields()}),)
    assert (await path(TWO, kept=kept, tool_use=TOOLS)).messages == (TWO,)


async def test_nothing_new_is_refused() -> None:
    """There is nothing to answer where the assistant had the last word."""
    with pytest.raises(InvalidRequest, match="has read all of these messages already"):
        await path(ONE, A, TWO, B)


async def test_without_the_window_all_is_read() -> None:
    """The newest version's weights answer, as if nothing had been said."""
    found = await path(ONE, A, EDIT, memory={"mode": "read", "window": False})
    assert found.base == V2
    assert (found.messages, found.is_continuing) == ((ONE, A, EDIT), False)
