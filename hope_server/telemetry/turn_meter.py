"""Measures one turn from its start to its end, and hands what it found to metrics, trace, log and token account."""

from __future__ import annotations

import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

from hope_server.errors import HopeError
from hope_server.telemetry.ledger import Stage, StageTime, TurnLedger
from hope_server.telemetry.logs import Scalar, log_event
from hope_server.telemetry.tracing import request_trace

if TYPE_CHECKING:
    from hope_server.telemetry.metrics import Metrics

__all__ = ["TokenAccount", "TurnMeter", "token_account"]

_COMPUTED: frozenset[Stage] = frozenset({"prefill", "decode", "learn"})


class TokenAccount(Protocol):
    """What a request's tokens are charged to."""

    def begin(self) -> None:
        """Note that computing begins; what it will take can only be guessed yet."""

    def settle(self, num_tokens: int) -> None:
        """Put what it took in the place of the guess."""

    def abandon(self, num_tokens: int) -> None:
        """Note that the client left after `num_tokens` tokens of answer; what was read for it stays a guess."""


token_account: ContextVar[TokenAccount | None] = ContextVar("hope_token_account", default=None)
"""Where the current request's tokens are charged; None where nobody counts."""


class TurnMeter:
    """Measures one turn and counts its end once, whoever reports it first."""

    def __init__(self, metrics: Metrics, operation: str) -> None:
        self.ledger = TurnLedger()
        self._metrics = metrics
        self._operation = operation
        self._started = time.perf_counter()
        self._ttft_seconds: float | None = None
        self._is_over = False
        self._num_pieces = 0
        self._num_tokens = 0
        self._trace = request_trace.get()
        self._account = token_account.get()
        if self._account is not None:
            self._account.begin()

    def first_text(self) -> None:
        """Note that text reached the API; the time counts from the first call."""
        self._num_pieces += 1
        if self._ttft_seconds is None:
            self._ttft_seconds = time.perf_counter() - self._started
            self._metrics.ttft_seconds.observe(self._ttft_seconds)

    def add_tokens(self, prompt: int, completion: int, learned: int) -> None:
        """Count the turn's tokens."""
        self._num_tokens += prompt + completion + learned
        for kind, count in (("prompt", prompt), ("completion", completion), ("learned", learned)):
            self._metrics.tokens.labels(kind).inc(count)
        if self._trace is not None:
            self._trace.note({"hope.prompt_tokens": prompt, "hope.completion_tokens": completion})
            self._trace.note({"hope.learned_tokens": learned})

    def add_memory(self, restored_from: str, loss: float | None, num_steps: int) -> None:
        """Count what the turn did with its session's memory.

        restored_from: one of a few words; loss: mean over the tokens it learned, in nats, None where it learned none;
        num_steps: of consolidation that it waited for.
        """
        self._metrics.count_memory(restored_from, loss, num_steps)
        if self._trace is not None:
            self._trace.note({"hope.restored_from": restored_from, "hope.consolidation_steps": num_steps})

    def end(self, outcome: str) -> None:
        """Close the turn: `outcome` is a finish reason, an error's code, `replayed` or `cancelled`."""
        if self._is_over:
            return
        self._is_over = True
        if self._account is not None and outcome == "cancelled":
            self._account.abandon(self._num_pieces)
        elif self._account is not None:
            self._account.settle(self._num_tokens)
        seconds = time.perf_counter() - self._started
        stages = self.ledger.close(self._add_stage)
        self._metrics.turns.labels(outcome).inc()
        self._metrics.turn_seconds.observe(seconds)
        is_error = _is_error(outcome)
        if is_error and not _COMPUTED & stages.keys():
            self._metrics.rejected.labels(outcome).inc()
        fields: dict[str, Scalar] = {"operation": self._operation, "outcome": outcome, "seconds": round(seconds, 4)}
        if self._ttft_seconds is not None:
            fields["ttft_seconds"] = round(self._ttft_seconds, 4)
        for stage, found in stages.items():
            fields[f"{stage}_seconds"] = round(found.seconds, 4)
            self._add_stage(stage, found)
        if self._trace is not None:
            self._trace.note({"hope.operation": self._operation, "hope.outcome": outcome})
            if is_error:
                self._trace.fail(outcome)
        log_event("turn", fields)

    def _add_stage(self, stage: Stage, found: StageTime) -> None:
        self._metrics.count_stage(stage, found)
        if self._trace is not None:
            self._trace.add_stage(stage, found)


def _is_error(outcome: str) -> bool:
    # The API has errors of its own, so the tree is asked when it is whole; a client that left made no mistake.
    return outcome != "cancelled" and outcome in _codes(HopeError)


def _codes(kind: type[HopeError]) -> set[str]:
    return {kind.code}.union(*map(_codes, kind.__subclasses__()))
