"""A verb as a generator: it yields what is to be done on the wire and is sent what came of it, so it is written once.

A client runs it (see `transport`): the plain one waits in place, the asynchronous one awaits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from hope_client.errors import HopeError
from hope_client.objects import LearnProgress
from hope_client.requests import Call

T = TypeVar("T")
Progress = Callable[[LearnProgress], None]

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0
_LONGEST_ASKED_SECONDS = 60.0


@dataclass(frozen=True)
class Send:
    """Send a call; the result is its Answer, of any status."""

    call: Call


@dataclass(frozen=True)
class Open:
    """Send a call; the result is httpx's response with an unread body, which whoever gets it must close."""

    call: Call


@dataclass(frozen=True)
class Study:
    """Send a learn or consolidate call and follow it to its end; the result is a LearnResult."""

    call: Call
    on_progress: Progress | None


@dataclass(frozen=True)
class Wait:
    """Do nothing for some seconds."""

    seconds: float


Step = Send | Open | Study | Wait
Flow = Generator[Step, Any, T]
"""A verb under way. What a step cannot do is raised into it as a HopeError."""


def attempt(step: Send | Open | Study, read: Callable[[Any], T], max_retries: int) -> Flow[T]:
    """Do a step and return what `read` makes of its result; where that fails and another attempt may not, make one."""
    for number in range(max_retries if step.call.is_repeatable else 0):
        try:
            return read((yield step))
        except HopeError as exc:
            if not exc.is_retryable:
                raise
            seconds = _pause(number, exc.retry_after_seconds)
        yield Wait(seconds)
    return read((yield step))


def _pause(number: int, asked_seconds: float | None) -> float:
    """Seconds before attempt `number` + 2: doubling, spread so that clients do not come back all at once."""
    doubled = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0**number) * random.uniform(0.75, 1.25)
    return max(doubled, min(asked_seconds or 0.0, _LONGEST_ASKED_SECONDS))
