"""Which of a request's messages the session has already read: full histories and only-the-new-message both work.

A session keeps one digest that chains over its canonical messages (role and stripped content). Pure Python.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from hope_server.engine.turn import Message

EMPTY = ""


@dataclass(frozen=True, slots=True)
class NewMessages:
    """messages: what the session has yet to read; chain: its digest after reading them."""

    messages: tuple[Message, ...]
    chain: str


def extend_chain(chain: str, message: Message) -> str:
    """The digest of a conversation with one more message."""
    role = "system" if message.role == "developer" else message.role
    content = message.content.strip()
    parts = f"{chain}\x00{role}\x00{len(content)}\x00{content}".encode()
    return hashlib.blake2b(parts, digest_size=16).hexdigest()


def chains(messages: Sequence[Message]) -> list[str]:
    """The digest after each prefix of the messages; index 0 is the empty conversation."""
    out = [EMPTY]
    for message in messages:
        out.append(extend_chain(out[-1], message))
    return out


def find_known(messages: Sequence[Message], known: Sequence[str]) -> tuple[str, int] | None:
    """The first of the `known` chains (best first) that is a prefix of `messages`, and its length in messages.

    At least one message must remain unread. The empty conversation counts only if nothing else is known.
    """
    prefixes = {chain: length for length, chain in enumerate(chains(messages)) if length < len(messages)}
    for chain in known:
        if chain in prefixes and (chain != EMPTY or set(known) == {EMPTY}):
            return chain, prefixes[chain]
    return None


def unread(messages: Sequence[Message], chain: str, length: int | None, known_systems: Sequence[str]) -> NewMessages:
    """What is new in `messages` for a session whose conversation has digest `chain`.

    length: messages known to be read already (see `find_known`); None means that the request does not repeat the
    conversation: then what follows its last assistant message is new, without system messages given before.
    """
    if length is None:
        replies = [index for index, message in enumerate(messages[:-1]) if message.role == "assistant"]
        tail = messages[replies[-1] + 1 :] if replies and chain != EMPTY else messages
        new = tuple(message for message in tail if system_digest(message) not in known_systems)
    else:
        new = tuple(messages[length:])
    for message in new:
        chain = extend_chain(chain, message)
    return NewMessages(new, chain)


def system_digest(message: Message) -> str | None:
    """The digest of a system message's content; None for other roles."""
    return extend_chain(EMPTY, message) if message.role in ("system", "developer") else None
