"""What is counted of a turn, and how the engine's own numbers are published."""

from __future__ import annotations

import math
import time

import pytest

from hope_server.errors import Overloaded, SessionConflict
from hope_server.telemetry import Metrics


def lines_of(metrics: Metrics) -> list[str]:
    """The lines that Prometheus would read."""
    return metrics.render().decode().splitlines()


def test_numbers_of_the_engine_are_gauges_or_counters() -> None:
    """What ends with _total is a counter, but for the slots in all; other numbers are gauges."""
    lines = lines_of(Metrics(lambda: {"slots_total": 3.0, "engine_busy_seconds_total": 1.5, "turns_running": 2.0}))
    for line in (
        "# TYPE hope_slots_total gauge",
        "hope_slots_total 3.0",
        "# TYPE hope_engine_busy_seconds_total counter",
        "hope_engine_busy_seconds_total 1.5",
        "# TYPE hope_turns_running gauge",
    ):
        assert line in lines


def test_a_turns_stages_are_observed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn's end observes each stage that it had, with the sum of its parts, and counts the bytes moved."""
    metrics = Metrics(dict)
    meter = metrics.turn("chat")
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    meter.ledger.add("decode", 4.0)
    meter.ledger.add("decode", 4.5)
    meter.ledger.add("restore", 5.0, 30)
    meter.end("stop")
    lines = lines_of(metrics)
    for line in (
        'hope_stage_seconds_count{stage="decode"} 1.0',
        'hope_stage_seconds_sum{stage="decode"} 1.5',
        'hope_stage_seconds_count{stage="learn"} 0.0',
        "hope_restored_bytes_total 30.0",
        "hope_committed_bytes_total 0.0",
    ):
        assert line in lines


def test_a_commit_behind_the_answer_is_counted() -> None:
    """With durability async the store is written after the turn's end; its time and bytes count all the same."""
    metrics = Metrics(dict)
    meter = metrics.turn("chat")
    meter.end("stop")
    meter.ledger.add("commit", 0.0, 12)
    lines = lines_of(metrics)

    assert 'hope_stage_seconds_count{stage="commit"} 1.0' in lines
    assert "hope_committed_bytes_total 12.0" in lines


def test_turns_that_were_refused() -> None:
    """An error before any computing is a refusal by its code; one after it, and a client that left, are not."""
    metrics = Metrics(dict)
    metrics.turn("chat").end(Overloaded.code)
    computed = metrics.turn("chat")
    computed.ledger.add("prefill", 0.0)
    computed.end(SessionConflict.code)
    metrics.turn("chat").end("cancelled")
    metrics.turn("chat").end("stop")
    refused = [line for line in lines_of(metrics) if line.startswith("hope_turns_rejected_total")]

    assert refused == ['hope_turns_rejected_total{code="overloaded"} 1.0']


def test_what_a_turn_did_with_memory() -> None:
    """Where the state was, the loss and the steps are counted; a loss that is no number is left out of the sum."""
    metrics = Metrics(dict)
    for source, loss in (("store", 2.25), ("hot", math.nan), ("hot", None), ("host", math.inf)):
        metrics.turn("learn").add_memory(source, loss, 2)
    lines = lines_of(metrics)
    for line in (
        'hope_restores_total{source="hot"} 2.0',
        'hope_restores_total{source="store"} 1.0',
        'hope_restores_total{source="new"} 0.0',
        "hope_turn_loss_nats_count 1.0",
        "hope_turn_loss_nats_sum 2.25",
        "hope_consolidation_steps_total 8.0",
    ):
        assert line in lines


def test_the_process_tells_its_memory() -> None:
    """The registry has the process's own numbers, under their usual names."""
    found = [line for line in lines_of(Metrics(dict)) if line.startswith("process_resident_memory_bytes ")]

    assert float(found[0].split()[1]) > 1e6
