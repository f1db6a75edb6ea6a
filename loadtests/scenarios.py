"""What each kind of user does in one step. A scenario outlives the Locust user that drives it: its sessions and a turn
that was cut off are taken up by the next user in its place.
"""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from urllib.parse import quote

from loadtests import texts
from loadtests.courier import Courier, Observe, TurnRefused
from loadtests.http_client import Client
from loadtests.ledger import Answer, Ledger, Turn
from loadtests.plan import Plan

Message = dict[str, str]
_CHARS_PER_TOKEN = 4.0
_MOST_CHARS_PER_TOKEN = 8.0
MANY = 4
"""Sessions of a user of `many` for each that others have."""
FACTS = 0.7
"""Share of turns that tell something; the others ask."""
_HOT_SESSIONS = 2


@dataclass(slots=True)
class Conversation:
    """A session as its user knows it. history: of one that sends its whole conversation; pending: a turn cut off."""

    session: str
    history: list[Message] = field(default_factory=list)
    pending: Turn | None = None
    num_turns: int = 0


class Scenario:
    """A place in the load that one user at a time takes."""

    name: ClassVar[str] = "chat"
    thinks: ClassVar[bool] = True

    def __init__(self, plan: Plan, number: int, ledger: Ledger, observe: Observe) -> None:
        """number: of this place among all of the scenario, over all processes."""
        self.plan = plan
        self.number = number
        self.ledger = ledger
        self.chance = random.Random(f"{plan.seed} {self.name} {number}")
        self.tenant = self.tenant_number(number)
        self._observe = observe
        self.client = self.connect()
        self.courier = self.courier_of(self.client)
        self.conversations = [Conversation(name) for name in self.session_names()]
        self._at = 0

    # -- what subclasses change ---

    def tenant_number(self, number: int) -> int:
        """The tenant of a place."""
        return number % max(1, len(self.plan.keys))

    def session_names(self) -> list[str]:
        """Names of the place's sessions; of the same place of another tenant they are the same."""
        own = self.number // max(1, len(self.plan.keys))
        return [self.named(f"{own}-{index}") for index in range(self.plan.sessions_each)]

    def step(self) -> None:
        """Take one turn. Raises TurnRefused."""
        self.say(self.next_conversation())

    # -- what they use ---

    def named(self, rest: str) -> str:
        """A session name of this run and scenario."""
        return f"{self.plan.prefix}{self.name}-{rest}"

    def next_conversation(self) -> Conversation:
        """The place's sessions, one after the other."""
        self._at = (self._at + 1) % len(self.conversations)
        return self.conversations[self._at]

    def connect(self) -> Client:
        """Another connection of the place's tenant."""
        key = self.plan.keys[self.tenant] if self.plan.keys else None
        return Client(self.plan.url, key, self.plan.silence_seconds)

    def courier_of(self, client: Client) -> Courier:
        """Who sends turns over a connection."""
        return Courier(client, self.ledger, self.name, self.chance, self._observe)

    def say(self, conversation: Conversation, leave_after: int | None = None) -> Answer:
        """Take up the turn that was cut off, or take the next one."""
        conversation.pending = conversation.pending or self.next_turn(conversation)
        return self.settle(conversation, leave_after)

    def next_turn(self, conversation: Conversation) -> Turn:
        """A turn that says or asks something."""
        label = f"{conversation.session}/{conversation.num_turns}"
        said = (texts.fact if self.chance.random() < FACTS else texts.question)(self.chance, label)
        return self.chat_turn(conversation, [{"role": "user", "content": said}])

    def settle(self, conversation: Conversation, leave_after: int | None = None) -> Answer:
        """Take the turn that is pending."""
        turn = conversation.pending
        assert turn is not None
        try:
            answer = self.courier.take(turn, leave_after)
        except TurnRefused:
            # Over, and not learned; where the user is stopped instead, the turn stays to be taken up.
            conversation.pending = None
            raise
        conversation.pending = None
        conversation.num_turns += 1
        if turn.resends:
            conversation.history = [*turn.body["messages"], {"role": "assistant", "content": answer.text}]
        return answer

    def chat_turn(self, conversation: Conversation, messages: list[Message], *, resends: bool = False) -> Turn:
        """A chat turn with an Idempotency-Key of its own."""
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": self.plan.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return Turn(self.tenant, conversation.session, _new_key(), "chat", "/v1/chat/completions", body, resends)

    def close(self) -> None:
        """Close the place's connection."""
        self.client.close()


class Many(Scenario):
    """Far more sessions than slots, at random: most turns load their session from the store."""

    name = "many"
    thinks = False

    def session_names(self) -> list[str]:
        """Four times as many as other users have."""
        own = self.number // max(1, len(self.plan.keys))
        return [self.named(f"{own}-{index}") for index in range(MANY * self.plan.sessions_each)]

    def next_conversation(self) -> Conversation:
        """Any of them, one with a turn cut off first."""
        cut_off = [each for each in self.conversations if each.pending is not None]
        return (cut_off or [self.chance.choice(self.conversations)])[0]


class Hot(Scenario):
    """All users of the scenario in two sessions: turns queue, and those too many are refused for a second."""

    name = "hot"

    def tenant_number(self, number: int) -> int:
        """That of the session."""
        return (number % _HOT_SESSIONS) % max(1, len(self.plan.keys))

    def session_names(self) -> list[str]:
        """One, which half of the scenario's users have."""
        return [self.named(str(self.number % _HOT_SESSIONS))]


class Learn(Scenario):
    """Feeds a document in pieces, then asks about it, then begins the next in another session."""

    name = "learn"
    thinks = False

    def __init__(self, plan: Plan, number: int, ledger: Ledger, observe: Observe) -> None:
        super().__init__(plan, number, ledger, observe)
        self._tokens_fed = 0
        self._chars_per_token = _CHARS_PER_TOKEN

    def session_names(self) -> list[str]:
        """One at a time."""
        return [self.named(f"{self.number}-0")]

    def step(self) -> None:
        """Feed one piece, or ask."""
        conversation = self.conversations[0]
        if conversation.pending is None and self._tokens_fed >= self.plan.document_tokens:
            self.say(conversation)
            self._tokens_fed = 0
            document = int(conversation.session.rsplit("-", 1)[1]) + 1
            self.conversations = [Conversation(self.named(f"{self.number}-{document}"))]
            return
        turn = conversation.pending = conversation.pending or self._piece(conversation)
        answer = self.settle(conversation)
        if turn.kind == "learn":
            self._tokens_fed += answer.tokens_read
            measured = len(turn.body["text"]) / max(1, answer.tokens_read)
            self._chars_per_token = min(max(measured, 1.0), _MOST_CHARS_PER_TOKEN)

    def _piece(self, conversation: Conversation) -> Turn:
        label = f"{conversation.session}/{conversation.num_turns}"
        num_chars = int(self.plan.piece_tokens * self._chars_per_token)
        body: dict[str, Any] = {"text": texts.piece(self.chance, label, num_chars), "stream": True}
        if self.plan.learn_passes:
            body["passes"] = self.plan.learn_passes
        path = f"/v1/sessions/{quote(conversation.session)}/learn"
        return Turn(self.tenant, conversation.session, _new_key(), "learn", path, body)


class Disconnect(Scenario):
    """Goes away before the answer, or after some of its text, and sends the request again."""

    name = "disconnect"

    def step(self) -> None:
        """Leave two turns of three."""
        leave_after = self.chance.randint(0, self.plan.max_tokens) if self.chance.random() < 0.67 else None
        self.say(self.next_conversation(), leave_after=leave_after)


class Retry(Scenario):
    """Repeats requests: after their answer, or both at once over two connections."""

    name = "retry"

    def step(self) -> None:
        """Take a turn; half of them are repeated, a quarter are sent twice at once."""
        conversation = self.next_conversation()
        kind = self.chance.random()
        turn = conversation.pending = conversation.pending or self.next_turn(conversation)
        if kind < 0.25:
            self._twice_at_once(conversation, turn)
            return
        self.settle(conversation)
        if kind < 0.75:
            self.ledger.count("sent again after the answer")
            self.courier.take(turn)

    def _twice_at_once(self, conversation: Conversation, turn: Turn) -> None:
        client = self.connect()
        other = threading.Thread(target=_quietly, args=(lambda: self.courier_of(client).take(turn),), daemon=True)
        self.ledger.count("sent twice at once")
        other.start()
        try:
            self.settle(conversation)
            other.join()
        finally:
            client.close()


class Look(Scenario):
    """Asks without teaching as soon as a turn is acknowledged: whoever answers must know that turn."""

    name = "look"
    thinks = False

    def step(self) -> None:
        """Take a turn, then a reading one in the same session."""
        conversation = self.next_conversation()
        learned = self.say(conversation)
        turn = self.chat_turn(conversation, [{"role": "user", "content": texts.question(self.chance, "look")}])
        seen = self.courier.take(replace(turn, body=turn.body | {"memory": {"mode": "read"}}))
        self.ledger.count("asked without teaching")
        if seen.version_before != learned.version_after:
            what = (
                f"{conversation.session} answered from {seen.version_before}, {learned.version_after} was made before"
            )
            self.ledger.fault("stale", what)


def _quietly(work: Callable[[], object]) -> None:
    """What went wrong is in the ledger already."""
    try:
        work()
    except Exception as exc:  # noqa: BLE001  a thread has nobody to raise to
        print(f"loadtests: the second of two requests: {type(exc).__name__}: {exc}", flush=True)


def _new_key() -> str:
    return uuid.uuid4().hex
