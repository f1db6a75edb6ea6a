"""What users ask for."""

from __future__ import annotations

from dataclasses import dataclass

from hope_server.errors import InvalidRequest

__all__ = ["Demand"]

_DAY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Demand:
    """Sessions and how they are used.

    sessions: that exist. turns_per_day: of each, on average; peak: how many times the average the busiest hour has.
    prompt_tokens, reply_tokens: of a turn, the chat template's included. taught: share of the prompt's tokens that is
    studied. think_seconds: mean pause of a user between the end of an answer and the next turn.
    """

    sessions: int
    turns_per_day: float = 20.0
    peak: float = 3.0
    prompt_tokens: float = 48.0
    reply_tokens: float = 96.0
    taught: float = 0.6
    think_seconds: float = 20.0

    def __post_init__(self) -> None:
        """Raise InvalidRequest for a number that no demand has."""
        for name in ("sessions", "turns_per_day", "prompt_tokens", "reply_tokens"):
            if not getattr(self, name) > 0:
                raise InvalidRequest(f"{name} is {getattr(self, name)}; it must be above 0", param=name)
        if not self.peak >= 1:
            raise InvalidRequest(f"peak is {self.peak}; it must be 1 or more", param="peak")
        if not 0 <= self.taught <= 1:
            raise InvalidRequest(f"taught is {self.taught}; it must be from 0 to 1", param="taught")
        if not self.think_seconds >= 0:
            raise InvalidRequest(f"think_seconds is {self.think_seconds}; it must be 0 or more", param="think_seconds")

    @property
    def turns_per_second(self) -> float:
        """Of all sessions together, in the busiest hour."""
        return self.sessions * self.turns_per_day * self.peak / _DAY_SECONDS

    @property
    def studied_tokens(self) -> float:
        """Of a turn."""
        return self.prompt_tokens * self.taught
