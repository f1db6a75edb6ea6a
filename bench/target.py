"""A figure of a benchmark and what it must reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A figure and what it must reach: `at_least` or, where that is False, at most `limit`."""

    name: str
    meaning: str
    limit: float
    at_least: bool = True

    def line(self, value: float) -> tuple[bool, str]:
        """Whether the value reaches the target, and the line that says so."""
        reached = value >= self.limit if self.at_least else value <= self.limit
        sign = ">=" if self.at_least else "<="
        verdict = "reached" if reached else "missed "
        return reached, f"{verdict}  {self.meaning}: {value:.2f} (target {sign} {self.limit:g})"
