"""A circuit breaker: when a service has failed several times in a row, ask it only now and then."""

from __future__ import annotations

from collections.abc import Callable


class Breaker:
    """Closed, it lets every operation pass. After `max_failures` in a row it is open and lets none pass, but one
    every `open_seconds`; the first that succeeds closes it.

    clock: monotonic seconds.
    """

    def __init__(self, max_failures: int, open_seconds: float, clock: Callable[[], float]) -> None:
        self._max_failures = max_failures
        self._open_seconds = open_seconds
        self._clock = clock
        self._num_failures = 0
        self._refuses_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether operations are refused, but for the one that is let through now and then."""
        return self._num_failures >= self._max_failures

    def admits(self) -> bool:
        """Whether an operation may begin; one that begins while the breaker is open is the only one for a time."""
        if not self.is_open:
            return True
        now = self._clock()
        if now < self._refuses_until:
            return False
        self._refuses_until = now + self._open_seconds
        return True

    def succeeded(self) -> None:
        """Note that the service answered."""
        self._num_failures = 0

    def failed(self) -> None:
        """Note that the service did not answer."""
        self._num_failures += 1
        self._refuses_until = self._clock() + self._open_seconds
