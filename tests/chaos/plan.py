"""What goes wrong and when: a list of faults that depends on the seed alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = {
    "kill server": 8.0,
    "stop server": 1.0,
    "freeze server": 1.0,
    "kill redis": 1.0,
    "reset store links": 1.5,
    "reset client links": 1.5,
    "cut store reply": 3.0,
    "cut client reply": 3.0,
    "cut store mid-command": 2.0,
    "slow store": 0.7,
    "slow clients": 0.7,
    "store unheard": 0.7,
    "store silent": 0.7,
    "store bytes lost": 0.5,
    "clients unheard": 0.5,
    "refuse store": 0.5,
}
"""Faults and how often each comes, relative to the others."""
GAP_SECONDS = 0.6
CALM_SECONDS = 1.0
_LONGEST_SECONDS = {"freeze server": (1.0, 3.0), "store unheard": (0.2, 3.0), "store silent": (0.2, 3.0)}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: at `at_seconds` after the start, to server number `server` or its links, for `seconds`.

    amount: between 0 and 1; what it scales depends on the kind.
    """

    at_seconds: float
    kind: str
    server: int
    seconds: float
    amount: float


def make_plan(seed: int, seconds: float, num_servers: int, kinds: Sequence[str] = tuple(KINDS)) -> list[Fault]:
    """Return the faults of a run, in order; the first and the last second are calm."""
    chance = random.Random(f"plan {seed}")
    weights = [KINDS[kind] for kind in kinds]
    plan: list[Fault] = []
    at = CALM_SECONDS + chance.expovariate(1 / GAP_SECONDS)
    while at < seconds - CALM_SECONDS:
        (kind,) = chance.choices(kinds, weights)
        span = chance.uniform(*_LONGEST_SECONDS.get(kind, (0.1, 1.0)))
        plan.append(Fault(at, kind, chance.randrange(num_servers), span, chance.random()))
        at += chance.expovariate(1 / GAP_SECONDS)
    return plan
