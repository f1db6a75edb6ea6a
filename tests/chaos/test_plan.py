"""A chaos run's plan: the same for a seed, calm at both ends, with every kind of fault in a long run."""

from __future__ import annotations

from tests.chaos.plan import CALM_SECONDS, KINDS, make_plan


def test_a_seed_is_a_plan() -> None:
    """The same seed gives the same faults, another one others."""
    assert make_plan(5, 30, 3) == make_plan(5, 30, 3) != make_plan(6, 30, 3)


def test_both_ends_are_calm() -> None:
    """Faults come in order, and none in the first or the last second."""
    times = [fault.at_seconds for fault in make_plan(1, 60, 3)]

    assert times == sorted(times)
    assert times[0] >= CALM_SECONDS and times[-1] < 60 - CALM_SECONDS
    assert 60 < len(times) < 140


def test_a_long_run_meets_everything() -> None:
    """Ten minutes have every kind of fault, on every server."""
    plan = make_plan(2, 600, 3)

    assert {fault.kind for fault in plan} == set(KINDS)
    assert {fault.server for fault in plan} == {0, 1, 2}
