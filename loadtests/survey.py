"""After the load: sends again what was not answered, and asks the server about every session."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from loadtests.checks import Seen
from loadtests.courier import Courier, Refusal, TurnRefused
from loadtests.http_client import BROKEN, Client, Reply
from loadtests.ledger import Account, Ledger, Name
from loadtests.plan import Plan

TURN_SECONDS = 180.0
"""How long an unanswered turn is sent again and again."""

_TRIES = 20
_SCENARIO = "settling"


class Survey:
    """Speaks to the server as every tenant, one request at a time."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        keys: Sequence[str | None] = plan.keys or (None,)
        self._ledger = ledger
        self._chance = random.Random(f"{plan.seed} survey")
        self._clients = [Client(plan.url, key, plan.silence_seconds) for key in keys]

    def settle(self, account: Account, turn_seconds: float = TURN_SECONDS) -> int:
        """Send every turn again that ended without an answer; return how many there were.

        A turn that was learned gives its answer again, one that was not is learned now: either way nothing is unknown
        then. One that gets no answer stays open in the ledger.
        """
        is_silent = False
        turns = [record.turn for record in account.turns.values() if record.is_open]
        known = [turn for turn in turns if turn is not None and (turn.tenant, turn.session) not in account.deleted]
        for turn in known:
            courier = Courier(self._clients[turn.tenant], self._ledger, _SCENARIO, self._chance, _ignore)
            try:
                # A server that did not answer one turn in all that time is not waited for as long again.
                courier.take(turn, seconds=1.0 if is_silent else turn_seconds)
            except TurnRefused:
                continue
            except TimeoutError:
                is_silent = True
        return len(known)

    def look(self, names: Sequence[Name]) -> dict[Name, Seen]:
        """Ask for every session's card, versions and turns; those that get no answer are noted and left out."""
        seen: dict[Name, Seen] = {}
        for number, name in enumerate(names):
            try:
                seen[name] = self._look(name)
            except TimeoutError as exc:
                self._ledger.fault("unsettled", f"{exc}; {len(names) - number} sessions were not looked at")
                break
        return seen

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients:
            client.close()

    def _look(self, name: Name) -> Seen:
        path = f"/v1/sessions/{quote(name[1])}"
        card = self._ask(name, path)
        if card.status == 404 or card.body is None:
            return Seen(None)
        return Seen(card.body, self._list(name, f"{path}/versions"), self._list(name, f"{path}/turns"))

    def _list(self, name: Name, path: str) -> list[dict[str, Any]]:
        return list((self._ask(name, path).body or {}).get("data", ()))

    def _ask(self, name: Name, path: str) -> Reply:
        """Ask until there is an answer. Raises TimeoutError."""
        for _ in range(_TRIES):
            wait = 0.5
            try:
                reply = self._clients[name[0]].request("GET", path)
            except BROKEN as exc:
                self._ledger.refusal(f"connection {type(exc).__name__}", is_honest=True)
            else:
                if reply.status in (200, 404):
                    return reply
                refusal = Refusal(reply.status, reply.error_code, reply.retry_after)
                self._ledger.refusal(str(refusal), is_honest=refusal.is_honest)
                if refusal.is_final:
                    self._ledger.fault("surprises", f"GET {path}: {refusal}")
                    return reply
                wait = refusal.wait_seconds or wait
            time.sleep(wait)
        raise TimeoutError(f"GET {path} got no answer in {_TRIES} tries")


def _ignore(_what: str, _milliseconds: float, _error: str | None) -> None:
    """Times after the load are not those of the load."""
