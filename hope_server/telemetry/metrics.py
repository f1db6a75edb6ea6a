"""Prometheus metrics of the service, in a registry of their own; docs/OPERATIONS.md has the table of all of them.

No label carries a tenant, a session's id or anything else without bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hope_server.telemetry.ledger import STAGES, Stage, StageTime
from hope_server.telemetry.turn_meter import TurnMeter

__all__ = ["Metrics"]

_TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TURN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_STAGE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
# What a model knows by heart costs next to nothing; a guess among 49,152 tokens costs 10.8 nats.
_LOSS_BUCKETS = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)

_HELP = {
    "consolidation_jobs_waiting": "Resident sessions with a consolidation that has not taken effect.",
    "engine_busy_seconds_total": "Seconds in which the engine's thread computed turns.",
    "host_cache_bytes": "Bytes of session states in host memory.",
    "host_cache_sessions": "Sessions whose newest state is in host memory.",
    "idle_consolidation_seconds_total": "Seconds of consolidation in moments without turns.",
    "idle_consolidation_steps_total": "Steps of consolidation in moments without turns.",
    "open_request_bytes": "Bytes of the requests that are open.",
    "sessions_uncommitted": "Sessions with a turn that the store does not have yet.",
    "slot_state_bytes": "Bytes of the states of all slots.",
    "slots_busy": "Slots in which a turn runs.",
    "slots_hot": "Slots that keep an idle session ready.",
    "slots_total": "Slots in all.",
    "turns_running": "Turns that have a slot.",
    "turns_waiting": "Turns that wait for a slot.",
}


def _is_counter(name: str) -> bool:
    """Whether a number of the engine only ever grows: what ends with _total does, but for the number of slots."""
    return name.endswith("_total") and name != "slots_total"


class _StatsCollector(Collector):
    """Reads the engine's own numbers when Prometheus asks, so that nothing has to push them."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        self._stats = stats

    def describe(self) -> list[GaugeMetricFamily]:
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        for name, value in sorted(self._stats().items()):
            text = _HELP.get(name, f"The engine's {name.replace('_', ' ')}.")
            kind = CounterMetricFamily if _is_counter(name) else GaugeMetricFamily
            yield kind(f"hope_{name}", text, value=value)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self, stats: Callable[[], Mapping[str, float]]) -> None:
        """`stats` returns the engine's numbers by name; each is published as hope_<name>.

        A name that ends with _total is a counter (but for slots_total), any other a gauge.
        """
        self.registry = CollectorRegistry()
        self.turns = self._counter("hope_turns", "Turns by how they ended.", "outcome")
        self.rejected = self._counter("hope_turns_rejected", "Turns refused before any computing, by error.", "code")
        self.requests = self._counter("hope_http_requests", "HTTP requests that were answered.", "route", "status")
        self.tokens = self._counter("hope_tokens", "Tokens by kind.", "kind")
        self.ttft_seconds = self._histogram(
            "hope_turn_ttft_seconds", "Seconds from a turn's start to its first text.", _TTFT_BUCKETS
        )
        self.turn_seconds = self._histogram(
            "hope_turn_seconds", "Seconds from a turn's start to its end.", _TURN_BUCKETS
        )
        self._stage_seconds = self._histogram(
            "hope_stage_seconds", "Seconds that a turn spent in each of its stages.", _STAGE_BUCKETS, "stage"
        )
        self._loss = self._histogram(
            "hope_turn_loss_nats", "Mean loss of the tokens that a turn learned, before it did.", _LOSS_BUCKETS
        )
        self._restores = self._counter("hope_restores", "Turns in a session, by where its state was.", "source")
        self._restored_bytes = self._counter("hope_restored_bytes", "Bytes of session states fetched for turns.")
        self._committed_bytes = self._counter("hope_committed_bytes", "Bytes of session states that turns stored.")
        self._steps = self._counter("hope_consolidation_steps", "Steps of consolidation that turns waited for.")
        for kind in ("prompt", "completion", "learned"):
            self.tokens.labels(kind)
        for stage in STAGES:
            self._stage_seconds.labels(stage)
        for source in ("new", "hot", "host", "store"):
            self._restores.labels(source)
        self.registry.register(_StatsCollector(stats))
        ProcessCollector(registry=self.registry)

    def turn(self, operation: str) -> TurnMeter:
        """Start the clock of one turn; `operation` (chat, learn, consolidate) goes into its log line."""
        return TurnMeter(self, operation)

    def count_stage(self, stage: Stage, found: StageTime) -> None:
        """Count a turn's time in a stage, and the bytes that it moved there."""
        self._stage_seconds.labels(stage).observe(found.seconds)
        if stage == "restore":
            self._restored_bytes.inc(found.num_bytes)
        elif stage == "commit":
            self._committed_bytes.inc(found.num_bytes)

    def count_memory(self, restored_from: str, loss: float | None, num_steps: int) -> None:
        """Count a turn in a session; arguments as of `TurnMeter.add_memory`."""
        self._restores.labels(restored_from).inc()
        self._steps.inc(num_steps)
        # One value that is no number would be the sum for ever.
        if loss is not None and math.isfinite(loss):
            self._loss.observe(loss)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
