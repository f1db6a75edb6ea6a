"""How many users there are at a time of a run: pure functions, which Locust's load shape asks every second."""

from __future__ import annotations

import math
from collections.abc import Callable

Shape = Callable[[float], float]
"""From the part of the run that is over, 0 to 1, to the part of the users that there are, above 0 to 1."""

_RAMP_STEPS = 10
_SPIKES = ((0.25, 0.35), (0.60, 0.70))
_SPIKE_FLOOR = 0.2
_SOAK_RISE = 0.05


def steady(_part: float) -> float:
    """All users from the start."""
    return 1.0


def ramp(part: float) -> float:
    """More users in ten equal steps; the last is the whole number."""
    return min(_RAMP_STEPS, math.floor(part * _RAMP_STEPS) + 1) / _RAMP_STEPS


def spike(part: float) -> float:
    """A fifth of the users, and all of them for two tenths of the run, in two spikes."""
    return 1.0 if any(start <= part < end for start, end in _SPIKES) else _SPIKE_FLOOR


def soak(part: float) -> float:
    """A short rise, then all users to the end."""
    return min(1.0, max(0.1, part / _SOAK_RISE))


SHAPES: dict[str, Shape] = {"steady": steady, "ramp": ramp, "spike": spike, "soak": soak}


def users_at(shape: str, elapsed_seconds: float, seconds: float, users: int) -> int | None:
    """Return how many users there are, at least one; None when the run is over."""
    if elapsed_seconds >= seconds:
        return None
    return max(1, round(users * SHAPES[shape](max(0.0, elapsed_seconds) / seconds)))


def spawn_rate(shape: str, users: int) -> float:
    """Return users to start or stop in a second: a spike comes within two, all else within about ten."""
    return max(1.0, users / (2.0 if shape == "spike" else 10.0))
