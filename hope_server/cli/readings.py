"""What a server's /metrics say at one moment, and what changed from one moment to the next."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from hope_server.telemetry import STAGES

__all__ = ["Change", "Reading", "summary"]

_MARK = "hope_slots_total"
_GOOD_ENDS = frozenset({"stop", "length", "tool_calls", "replayed", "cancelled"})

Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reading:
    """All samples of one moment. at: seconds of a clock that only differences count of."""

    at: float
    samples: dict[str, dict[Labels, float]]

    @classmethod
    def parse(cls, text: str, at: float) -> Reading:
        """Read Prometheus' text format. Raises ValueError for what is no such text, or not of a HOPE Server."""
        samples: dict[str, dict[Labels, float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples[sample.name][frozenset(sample.labels.items())] = sample.value
        if _MARK not in samples:
            raise ValueError(f"there is no {_MARK} in it")
        return cls(at, dict(samples))

    def total(self, name: str) -> float:
        """The sum of a metric's samples, whatever their labels; 0 where there is none."""
        return sum(self.samples.get(name, {}).values())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums of a metric's samples by the values of one label."""
        sums: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            sums[dict(labels).get(label, "")] += value
        return dict(sums)


@dataclass(frozen=True, slots=True)
class Change:
    """Two moments, `before` the earlier one. A counter that fell began again at zero with a new process."""

    before: Reading
    after: Reading

    @property
    def seconds(self) -> float:
        """Seconds between the two."""
        return max(self.after.at - self.before.at, 1e-9)

    def grown(self, name: str, label: str) -> dict[str, float]:
        """By how much a counter grew, by the values of one label."""
        earlier = self.before.by(name, label)
        later = self.after.by(name, label)
        return {key: _growth(earlier.get(key, 0.0), value) for key, value in later.items()}

    def rate(self, name: str) -> float:
        """By how much a counter grew a second."""
        return _growth(self.before.total(name), self.after.total(name)) / self.seconds

    def rates(self, name: str, label: str) -> dict[str, float]:
        """By how much a counter grew a second, by the values of one label."""
        return {key: value / self.seconds for key, value in self.grown(name, label).items()}

    def quantile(self, name: str, share: float) -> float | None:
        """The quantile of what a histogram observed in between, as Prometheus reckons it; None where that is nothing.

        share: 0 to 1. What lies above the last finite bound counts as that bound.
        """
        grown = self.grown(f"{name}_bucket", "le")
        bounds = sorted(grown, key=float)
        if not bounds or grown[bounds[-1]] <= 0:
            return None
        rank, low, below = share * grown[bounds[-1]], 0.0, 0.0
        for bound in bounds:
            high, count = float(bound), grown[bound]
            if math.isinf(high):
                return low
            if count >= rank and count > below:
                return low + (high - low) * (rank - below) / (count - below)
            low, below = high, count
        return low


def summary(change: Change) -> dict[str, Any]:
    """What `hope top` shows, as a JSON-ready object: seconds, bytes, rates a second, shares from 0 to 1."""
    now = change.after
    stages = change.grown("hope_stage_seconds_sum", "stage")
    spent = sum(stages.values())
    statuses = change.rates("hope_http_requests_total", "status")
    outcomes = change.rates("hope_turns_total", "outcome")
    return {
        "turns": {
            "running": now.total("hope_turns_running"),
            "waiting": now.total("hope_turns_waiting"),
            "ended_per_second": sum(outcomes.values()),
        },
        "slots": {kind: now.total(f"hope_slots_{kind}") for kind in ("total", "busy", "hot")},
        "tokens_per_second": change.rates("hope_tokens_total", "kind"),
        "ttft_seconds": _quantiles(change, "hope_turn_ttft_seconds"),
        "turn_seconds": _quantiles(change, "hope_turn_seconds"),
        "stage_shares": {stage: stages.get(stage, 0.0) / spent if spent else 0.0 for stage in STAGES},
        "engine_busy_share": change.rate("hope_engine_busy_seconds_total"),
        "idle_consolidation_share": change.rate("hope_idle_consolidation_seconds_total"),
        "restores_per_second": change.rates("hope_restores_total", "source"),
        "memory": {
            "resident_bytes": now.total("process_resident_memory_bytes"),
            "slot_state_bytes": now.total("hope_slot_state_bytes"),
            "host_cache_bytes": now.total("hope_host_cache_bytes"),
        },
        "errors_per_second": {
            "turns": sum(rate for outcome, rate in outcomes.items() if outcome not in _GOOD_ENDS),
            "http_4xx": sum(rate for status, rate in statuses.items() if status.startswith("4")),
            "http_5xx": sum(rate for status, rate in statuses.items() if status.startswith("5")),
        },
    }


def _quantiles(change: Change, name: str) -> dict[str, float | None]:
    return {"p50": change.quantile(name, 0.5), "p95": change.quantile(name, 0.95)}


def _growth(before: float, after: float) -> float:
    return after - before if after >= before else after
