"""One turn, sent until it is acknowledged; what is measured meanwhile, and what a refusal means."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loadtests.http_client import BROKEN, Client, retry_after, sse_objects, whole
from loadtests.ledger import Answer, Ledger, Turn

Observe = Callable[[str, float, str | None], None]
"""Told of each measurement: its name, milliseconds, and the error's kind, None where all went well."""

_BACKOFF_SECONDS = (0.2, 1.0)
_LONGEST_WAIT_SECONDS = 10.0
# Codes that a stream may end with and a later request may not: what comes with a status of 503, 429 or 409 elsewhere.
_PASSING = {
    "cancelled",
    "durability_unmet",
    "loading",
    "overloaded",
    "rate_limit_exceeded",
    "session_busy",
    "session_conflict",
    "shutting_down",
    "store_unavailable",
}
_SERVER_FAULTS = {"internal_error", "state_corrupt", "startup_error", "store_full", "no error object"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error answer. status: None where it came inside a stream; wait_seconds: of its Retry-After."""

    status: int | None
    code: str
    wait_seconds: float | None = None

    def __str__(self) -> str:
        """Its status and code."""
        return f"{'stream' if self.status is None else self.status} {self.code}"

    @property
    def is_honest(self) -> bool:
        """Whether a server that lost nothing may say this: no 5xx but a 503 that tells when to come back."""
        if self.status is None:
            return self.code not in _SERVER_FAULTS
        return self.status < 500 or (self.status == 503 and self.wait_seconds is not None)

    @property
    def is_final(self) -> bool:
        """Whether the same request would be refused again."""
        if self.status is None:
            return self.code not in _PASSING | _SERVER_FAULTS
        return self.status < 500 and self.wait_seconds is None


class TurnRefused(Exception):
    """The server will not take the turn, however often it is sent."""


class _TryAgain(Exception):
    """The try failed; the turn may have been learned or not."""

    def __init__(self, wait_seconds: float | None = None) -> None:
        super().__init__()
        self.wait_seconds = wait_seconds


class Courier:
    """Sends the turns of one user, one after the other."""

    def __init__(self, client: Client, ledger: Ledger, scenario: str, chance: random.Random, observe: Observe) -> None:
        self._client = client
        self._ledger = ledger
        self._scenario = scenario
        self._chance = chance
        self._observe = observe

    def take(self, turn: Turn, leave_after: int | None = None, seconds: float = float("inf")) -> Answer:
        """Send a turn until it is answered. Raises TurnRefused, or TimeoutError after about `seconds`.

        leave_after: events of the first try after which the user goes away; 0: before the answer begins.
        """
        self._ledger.begin(turn, self._scenario)
        began = time.perf_counter()
        answers: list[Answer] = []
        refused: str | None = None
        try:
            if leave_after == 0:
                self._client.send_and_leave(turn.path, turn.body, _headers(turn))
                self._ledger.count("left before the answer")
                self._wait(None)
                leave_after = None
            while not answers:
                try:
                    answers.append(self._try(turn, leave_after))
                except _TryAgain as exc:
                    if time.perf_counter() - began > seconds:
                        raise TimeoutError(f"no answer to {turn.key} in {seconds:g} s") from exc
                    self._wait(exc.wait_seconds)
                except TurnRefused as exc:
                    refused = str(exc)
                    raise
                leave_after = None
        finally:
            # Also where the user is stopped in the middle: an end without an answer keeps the body.
            self._ledger.end(turn, answers, refused)
        self._observe(f"{turn.kind} turn", _since(began), None)
        return answers[0]

    def _try(self, turn: Turn, leave_after: int | None) -> Answer:
        began = time.perf_counter()
        try:
            with self._client.open("POST", turn.path, turn.body, _headers(turn)) as response:
                if response.status != 200:
                    reply = whole(response)
                    raise self._judge(turn, Refusal(reply.status, reply.error_code, retry_after(response)), began)
                return self._read(turn, sse_objects(response), began, leave_after)
        except BROKEN as exc:
            what = f"connection {type(exc).__name__}"
            self._ledger.refusal(what, is_honest=True)
            self._observe(f"{turn.kind} try", _since(began), what)
            raise _TryAgain from exc

    def _read(self, turn: Turn, events: Any, began: float, leave_after: int | None) -> Answer:
        """Read a stream to its end, and measure it. Only what comes with [DONE] is an acknowledgement."""
        first = last = None
        num_pieces, text = 0, list[str]()
        end: dict[str, Any] = {}
        for index, event in enumerate(events, 1):
            if "error" in event:
                raise self._judge(turn, Refusal(None, str(event["error"].get("code"))), began)
            piece = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            if piece:
                last = time.perf_counter()
                first = first or last
                num_pieces += 1
                text.append(piece)
            if event.get("memory") or event.get("usage"):
                end |= {key: event[key] for key in ("memory", "usage") if event.get(key)}
            if leave_after is not None and index >= leave_after:
                self._ledger.count("left in mid-stream")
                raise _TryAgain
        if "memory" not in end:
            self._ledger.fault("surprises", f"{turn.session} {turn.key}: a stream was done without a receipt")
            raise _TryAgain
        return self._answer(turn, end, "".join(text), began, first, last, num_pieces)

    def _answer(
        self,
        turn: Turn,
        end: Mapping[str, Any],
        text: str,
        began: float,
        first: float | None,
        last: float | None,
        num_pieces: int,
    ) -> Answer:
        receipt, usage = end["memory"], end.get("usage") or {}
        num_tokens = int(usage.get("completion_tokens") or num_pieces)
        total_ms, ttft_ms, tpot_ms = _since(began), None, None
        # A replay comes all at once: its times say nothing about how fast text is made.
        if not receipt["replayed"] and first is not None and last is not None:
            ttft_ms = (first - began) * 1e3
            self._observe(f"{turn.kind} ttft", ttft_ms, None)
            if num_pieces > 1 and num_tokens > 1:
                tpot_ms = (last - first) * 1e3 / (num_tokens - 1)
                self._observe(f"{turn.kind} tpot", tpot_ms, None)
        self._observe(f"{turn.kind} {'replay' if receipt['replayed'] else 'stream'}", total_ms, None)
        return Answer(
            version_before=receipt["version_before"],
            version_after=receipt["version_after"],
            turn=receipt["turn"],
            tokens_read=receipt["tokens_read"],
            tokens_learned=receipt["tokens_learned"],
            is_replay=receipt["replayed"],
            not_learned=receipt["not_learned"] or receipt["discarded"],
            restored_from=receipt["restored_from"],
            text=text,
            at=time.time(),
            total_ms=total_ms,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            num_tokens=num_tokens,
        )

    def _judge(self, turn: Turn, refusal: Refusal, began: float) -> Exception:
        self._ledger.refusal(str(refusal), is_honest=refusal.is_honest)
        self._observe(f"{turn.kind} try", _since(began), str(refusal))
        if refusal.is_final:
            self._ledger.fault("surprises", f"{turn.session} {turn.key}: {refusal}")
            return TurnRefused(str(refusal))
        return _TryAgain(refusal.wait_seconds)

    def _wait(self, seconds: float | None) -> None:
        """Sleep as long as was asked, and a little longer, so that those who wait do not come back together."""
        shortest, longest = _BACKOFF_SECONDS
        asked = self._chance.uniform(shortest, longest) if seconds is None else seconds * self._chance.uniform(1.0, 1.5)
        time.sleep(min(asked, _LONGEST_WAIT_SECONDS))


def _headers(turn: Turn) -> dict[str, str]:
    headers = {"Idempotency-Key": turn.key}
    return headers if turn.kind == "learn" else headers | {"X-Session-ID": turn.session}


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1e3
