"""Users that do more than go on with a session: edits of its past, forks, looks at other tenants' sessions."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import quote

from loadtests import texts
from loadtests.courier import Observe, Refusal, TurnRefused
from loadtests.http_client import BROKEN, Reply
from loadtests.ledger import Birth, Ledger, Turn
from loadtests.plan import Plan
from loadtests.scenarios import Conversation, Disconnect, Hot, Learn, Look, Many, Retry, Scenario

_TURNS_WITH_HISTORY = 10
_MAX_FORKS = 3
_VERB_TRIES = 30


class Edit(Scenario):
    """Sends its whole conversation each time; every third turn changes one of its latest messages."""

    name = "edit"

    def session_names(self) -> list[str]:
        """A few, each with a generation that goes up when the conversation has become long."""
        return [f"{name}-0" for name in super().session_names()]

    def step(self) -> None:
        """Say something new, or something else in place of what was said."""
        conversation = self.next_conversation()
        if conversation.pending is None:
            if conversation.num_turns >= _TURNS_WITH_HISTORY:
                conversation = self._begin_anew()
            conversation.pending = self._turn(conversation)
        self.settle(conversation)

    def _turn(self, conversation: Conversation) -> Turn:
        past = conversation.history
        if conversation.num_turns % 3 == 2 and len(past) >= 6:
            # The first exchange stays: what shares nothing with the conversation is taken for another one.
            past = past[: 2 * self.chance.randint(1, len(past) // 2 - 1)]
            self.ledger.count("edited an earlier message")
        label = f"{conversation.session}/{conversation.num_turns}"
        messages = [*past, {"role": "user", "content": texts.fact(self.chance, label)}]
        return self.chat_turn(conversation, messages, resends=True)

    def _begin_anew(self) -> Conversation:
        stem, _, generation = self.conversations[self._at].session.rpartition("-")
        self.conversations[self._at] = Conversation(f"{stem}-{int(generation) + 1}")
        return self.conversations[self._at]


class _WithVerbs(Scenario):
    """Sends requests that are no turns."""

    def verb(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[Reply, bool]:
        """Send a request until it is answered; also tells whether a try before may have worked. Raises TurnRefused."""
        may_have_worked = False
        for _ in range(_VERB_TRIES):
            began = time.perf_counter()
            name = f"{method} {path.rsplit('/', 1)[1] if body is not None else 'session'}"
            try:
                reply = self.client.request(method, path, body)
            except BROKEN as exc:
                may_have_worked = True
                self.ledger.refusal(f"connection {type(exc).__name__}", is_honest=True)
                time.sleep(self.chance.uniform(0.2, 1.0))
                continue
            refusal = Refusal(reply.status, reply.error_code, reply.retry_after) if reply.status >= 400 else None
            self._observe(name, (time.perf_counter() - began) * 1e3, None)
            if refusal is None or refusal.is_final:
                return reply, may_have_worked
            self.ledger.refusal(str(refusal), is_honest=refusal.is_honest)
            time.sleep((refusal.wait_seconds or 1.0) * self.chance.uniform(1.0, 1.5))
        raise TurnRefused(f"{method} {path} was not answered in {_VERB_TRIES} tries")


class Fork(_WithVerbs):
    """Forks its session now and then, goes on in both, and deletes forks that are too many."""

    name = "fork"

    def __init__(self, plan: Plan, number: int, ledger: Ledger, observe: Observe) -> None:
        super().__init__(plan, number, ledger, observe)
        self._num_forks = 0
        self._unborn: str | None = None
        self._stem = self.conversations[0].session
        self._last_version: str | None = None

    def session_names(self) -> list[str]:
        """One, and its forks."""
        return super().session_names()[:1]

    def step(self) -> None:
        """Fork every fourth time; else take a turn in the session or one of its forks."""
        parent = self.conversations[0]
        if self._unborn is not None or (
            parent.pending is None and self._last_version is not None and self.chance.random() < 0.25
        ):
            self._fork()
        else:
            conversation = self.next_conversation()
            answer = self.say(conversation)
            if conversation is parent:
                self._last_version = answer.version_after

    def _fork(self) -> None:
        self._unborn = self._unborn or f"{self._stem}-fork-{self._num_forks + 1}"
        reply, may_have_worked = self.verb("POST", f"/v1/sessions/{quote(self._stem)}/fork", {"id": self._unborn})
        if reply.status != 201 and not (reply.error_code == "session_exists" and may_have_worked):
            self.ledger.fault("surprises", f"fork {self._unborn}: {reply.status} {reply.error_code}")
            self._unborn = None
            return
        versions, _ = self.verb("GET", f"/v1/sessions/{quote(self._unborn)}/versions")
        if versions.status != 200 or versions.body is None:
            self.ledger.fault("lost", f"fork {self._unborn}: {versions.status} {versions.error_code}")
            self._unborn = None
            return
        (birth,) = versions.body["data"]
        if birth["parent"] != self._last_version:
            what = f"fork {self._unborn} stands at {birth['parent']}, {self._last_version} was acknowledged"
            self.ledger.fault("lost", what)
        self.ledger.birth((self.tenant, self._unborn), Birth(birth["version"], birth["number"]))
        self.conversations.append(Conversation(self._unborn))
        self._num_forks, self._unborn = self._num_forks + 1, None
        if len(self.conversations) > 1 + _MAX_FORKS and self.conversations[1].pending is None:
            self._delete(self.conversations.pop(1))

    def _delete(self, conversation: Conversation) -> None:
        # Noted before: a session that may be gone is not looked for.
        self.ledger.deleted((self.tenant, conversation.session))
        reply, may_have_worked = self.verb("DELETE", f"/v1/sessions/{quote(conversation.session)}")
        if reply.status != 200 and not (reply.status == 404 and may_have_worked):
            self.ledger.fault("lost", f"{conversation.session} was to be deleted: {reply.status} {reply.error_code}")


class Tenants(_WithVerbs):
    """Chats, and looks for the sessions of another tenant, under names that only that tenant has."""

    name = "tenants"

    def session_names(self) -> list[str]:
        """Names with the tenant in them."""
        return [self.named(f"{self.number}-{index}") for index in range(self.plan.sessions_each)]

    def step(self) -> None:
        """Take a turn, or look."""
        if len(self.plan.keys) < 2 or self.chance.random() < 0.67:
            super().step()
            return
        # The next place is of the next tenant.
        verb = self.chance.choice(("", "/turns", "/versions", "/memory"))
        path = f"/v1/sessions/{quote(self.named(f'{self.number + 1}-0'))}{verb}"
        reply, _ = self.verb("GET", path)
        self.ledger.count("looked for another tenant's session")
        if reply.status != 404:
            self.ledger.fault("foreign", f"tenant {self.tenant} got {reply.status} for {path}")


ALL: dict[str, type[Scenario]] = {
    each.name: each for each in (Scenario, Many, Hot, Learn, Disconnect, Retry, Edit, Fork, Tenants, Look)
}
"""Scenarios by name: those of `loadtests.plan.SCENARIOS`."""
