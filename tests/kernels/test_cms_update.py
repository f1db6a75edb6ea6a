"""`cms_update`: the torch form against the reference, bit for bit the optimizer's rules, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hope_kernels.cms_update import LevelWrite, cap_drift, clip_norm, write_
from level_writes import NAMES, copied, draw, expected

FINITE = [True, True, True, False, True, True]
SLOTS = [6, 0, -1, 2, 5, 3]
WIDTH = 9


def close(found: torch.Tensor, wanted: torch.Tensor | list[float]) -> None:
    """Equal but for the order in which float64 sums up squares and Newton-Schulz's products."""
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num_weights", [4, 28])
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_write_is_that_of_the_reference(name: str, accumulates: bool, num_weights: int) -> None:
    """Rows that taught nothing, are not due, not finite or have no slot stand among those that are written."""
    level = draw(name, num_weights, 7, 6, accumulates)
    after, norms, written = expected(name, level, FINITE, SLOTS)
    found = write_([level], torch.tensor(FINITE), torch.tensor(SLOTS))
    assert any(written) and found[0].is_written.tolist() == written
    close(found[0].norm, norms)
    close(level.weights, after.weights)
    close(level.accumulator, after.accumulator)
    for key, tensor in level.moments.items():
        close(tensor, after.moments[key])


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_a_write_is_the_optimizers_own_bit_for_bit(name: str, accumulates: bool) -> None:
    """In float32: clipped, stepped and capped by `hope_server.optim`, row i in slot i."""
    level = draw(name, 33, 6, 6, accumulates, torch.float32)
    before, finite = copied(level), torch.tensor(FINITE)
    found = write_([level], finite)[0]
    taught = finite & (before.num_taught > 0)
    mean = torch.where(taught[:, None], before.gradient / before.num_taught.clamp_min(1)[:, None], 0.0)
    if accumulates:
        mean = before.accumulator + mean
    due = finite & before.is_due if accumulates else taught
    change, moments = before.step(
        before.moments, clip_norm(mean, 1.0), before.num_steps + 1, before.weights - before.initial
    )
    wanted = cap_drift(before.weights + change, before.initial, before.norm_cap)
    assert torch.equal(found.is_written, due) and bool(due.any())
    assert torch.equal(level.weights, torch.where(due[:, None], wanted, before.weights))
    assert torch.equal(found.norm, torch.where(due, (wanted - before.weights).norm(dim=1), 0.0))
    for key, tensor in level.moments.items():
        assert torch.equal(tensor, torch.where(due[:, None], moments[key], before.moments[key]))


def test_cap_drift_pulls_back_only_rows_that_drifted_too_far() -> None:
    """A row within the cap keeps its bits; one beyond it ends at the cap, in its own direction from the start."""
    initial = torch.randn(WIDTH, dtype=torch.float64)
    direction = torch.randn(2, WIDTH, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    weights = initial + direction * torch.tensor([[1.9], [50.0]], dtype=torch.float64)
    capped = cap_drift(weights, initial, 2.0)
    assert torch.equal(capped[0], weights[0])
    torch.testing.assert_close(capped[1], initial + 2.0 * direction[1], rtol=0, atol=1e-13)


def test_cap_drift_keeps_weights_that_have_not_moved() -> None:
    """No drift at all is no division by zero."""
    initial = torch.randn(WIDTH)
    assert torch.equal(cap_drift(initial.expand(2, -1), initial, 1.0), initial.expand(2, -1))


def test_clip_norm_scales_each_row_by_its_own_norm() -> None:
    """Rows below the limit and rows of zeros are unchanged; a row above it comes down to the limit."""
    gradient = torch.tensor([[0.3, 0.4], [30.0, 40.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.3, 0.4], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(clip_norm(gradient, 1.0), expected, rtol=1e-15, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_written_keep_every_bit(name: str) -> None:
    """Slots of rows that are not due, not finite or not there keep NaN, infinity and minus zero as they are."""
    level = draw(name, 8, 7, 6, accumulates=True)
    untouched = [1, 2, 4, 6]
    for tensor in (level.weights, *level.moments.values()):
        tensor[untouched] = torch.tensor([torch.nan, torch.inf, -0.0, 1e300] * 2, dtype=torch.float64)
    level.is_due = torch.tensor([False, True, True, True, True, True])
    level.gradient[3] = torch.nan
    before = copied(level)
    found = write_([level], None, torch.tensor(SLOTS))[0]
    assert found.is_written.tolist() == [False, True, False, False, True, True]
    pairs = [(level.weights, before.weights), *zip(level.moments.values(), before.moments.values(), strict=True)]
    for new, old in pairs:
        assert torch.equal(new.view(torch.int64)[untouched], old.view(torch.int64)[untouched])
    # Slot 6 accumulated, its row is finite and not due.
    assert torch.equal(level.accumulator[[1, 2, 4]], before.accumulator[[1, 2, 4]])


def test_a_gradient_that_is_not_finite_stops_the_row_in_every_level() -> None:
    """Where `finite` is left out, one level's NaN keeps the row's other levels as they were too."""
    levels = [draw("adam", 8, 4, 4), draw("sgd", 12, 4, 4)]
    levels[1].gradient[1, 3] = torch.inf
    before = [copied(level) for level in levels]
    found = write_(levels)
    assert [each.is_written.tolist() for each in found] == [[False, False, True, True]] * 2
    for level, old in zip(levels, before, strict=True):
        assert torch.equal(level.weights[1], old.weights[1])


def test_several_levels_are_each_written_as_alone() -> None:
    """One call for all levels gives what a call for each gives, bit for bit."""
    levels = [draw(name, 8, 7, 6, name != "sgd") for name in NAMES]
    alone = [copied(level) for level in levels]
    write_(levels, torch.tensor(FINITE), torch.tensor(SLOTS))
    for level, other in zip(levels, alone, strict=True):
        write_([other], torch.tensor(FINITE), torch.tensor(SLOTS))
        assert torch.equal(level.weights, other.weights) and torch.equal(level.accumulator, other.accumulator)


def test_slots_change_nothing_but_the_place() -> None:
    """Rows whose slots are a permutation are written as in place, bit for bit."""
    order = torch.tensor([2, 0, 3, 1])
    level = draw("adam", 12, 4, 4)
    moved = replace(copied(level), num_steps=level.num_steps.clone())
    for tensor in (moved.weights, moved.num_steps, *moved.moments.values()):
        tensor[order] = tensor.clone()
    write_([level])
    write_([moved], None, order)
    assert torch.equal(moved.weights[order], level.weights)


def test_a_drift_ends_at_the_cap() -> None:
    """A write that would pass the cap ends on it, in the direction that it had."""
    level = draw("sgd", 16, 2, 2, norm_cap=0.01)
    write_([level])
    drift = (level.weights - level.initial).norm(dim=1)
    assert float(drift[1]) == pytest.approx(0.01, rel=1e-12) and float(drift[0]) > 0.01


def test_no_levels_write_nothing() -> None:
    """An empty list is answered with one."""
    assert write_([]) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"weights": torch.zeros(4, 8, dtype=torch.int64)}, "weights"),
        ({"initial": torch.zeros(7)}, "initial"),
        ({"accumulator": torch.zeros(4, 3)}, "accumulator"),
        ({"num_steps": torch.zeros(4, dtype=torch.int32)}, "num_steps"),
        ({"num_steps": torch.zeros(3, dtype=torch.int64)}, "num_steps"),
        ({"gradient": torch.zeros(4, 9)}, "gradient"),
        ({"gradient": torch.zeros(8, 4).mT}, "gradient"),
        ({"gradient": torch.zeros(4, 8, device="meta")}, "gradient"),
        ({"num_taught": torch.zeros(4)}, "num_taught"),
        ({"is_due": torch.zeros(4, dtype=torch.int64)}, "is_due"),
        ({"moments": {}}, "moments"),
        ({"moments": {"first_moment": torch.zeros(4, 8), "second_moment": torch.zeros(5, 8)}}, "moments"),
    ],
)
def test_levels_that_do_not_fit_are_named(changes: dict[str, Any], name: str) -> None:
    """Another type, shape, stride or device, or other moments than the rule's, are refused with the level's number."""
    levels: list[LevelWrite] = [draw("adam", 8, 4, 4, dtype=torch.float32) for _ in range(2)]
    levels[1] = replace(levels[1], **changes)
    with pytest.raises(ValueError, match=rf"^levels\[1\]\.{name}"):
        write_(levels)


def test_slots_and_rows_must_agree() -> None:
    """Rows without slots of their own, slots that are shared, and another number of either are refused."""
    for num_rows, slots in ((3, None), (4, [0, 1, 1, 2]), (4, [0, 1]), (4, [0, 1, 2, 4])):
        with pytest.raises(ValueError, match=r"^slots: must"):
            write_([draw("sgd", 8, 4, num_rows)], None, None if slots is None else torch.tensor(slots))
    with pytest.raises(ValueError, match=r"^finite: must"):
        write_([draw("sgd", 8, 4, 4)], torch.ones(3, dtype=torch.bool))
