"""The GPU kernels of `cms_update`: all levels in one call equal the reference in float64; other slots stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed; run make test-kernels")

from hope_kernels.cms_update import LevelWrite, gpu
from level_writes import NAMES, copied, draw, expected

# What Triton 3.6's interpreter does at every `range` over a number that is not known ahead.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

Error = Callable[[torch.Tensor, torch.Tensor], float]

# Weights, moments and norms are float32 whatever the gradient's type, which the reference is given as it was rounded:
# a few roundings of 6e-8 each; m3's products in float32 are off by 1e-6.
LIMIT = 2e-6
FINITE = [True, True, True, False, True, True]
SLOTS = [6, 0, -1, 2, 5, 3]
TYPES = [
    torch.float32,
    torch.float16,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


def on(device: torch.device, level: LevelWrite) -> LevelWrite:
    """A copy of a level on the device."""
    names = ("weights", "initial", "accumulator", "num_steps", "gradient", "num_taught", "is_due")
    moved = {name: getattr(level, name).to(device) for name in names}
    return replace(copied(level), **moved, moments={key: t.to(device) for key, t in level.moments.items()})


def check(levels: dict[str, LevelWrite], device: torch.device, relative_error: Error) -> None:
    """Write all levels in one call, and compare each with the reference."""
    given = [on(device, level) for level in levels.values()]
    given = [replace(level, weights=level.weights.clone(), accumulator=level.accumulator.clone()) for level in given]
    for level in given:
        level.moments = {key: tensor.clone() for key, tensor in level.moments.items()}
    found = gpu.write_(given, torch.tensor(FINITE, device=device), torch.tensor(SLOTS, device=device))
    for (name, level), after, each in zip(levels.items(), given, found, strict=True):
        wanted, norms, written = expected(name.split()[0], level, FINITE, SLOTS)
        assert each.is_written.tolist() == written
        assert relative_error(each.norm, torch.tensor(norms)) < LIMIT
        # What a write changes, not the weights that it stands beside.
        moved = after.weights.cpu().double() - level.weights.double()
        assert relative_error(moved + level.initial, wanted.weights - level.weights.double() + level.initial) < LIMIT
        assert relative_error(after.weights, wanted.weights) < LIMIT
        assert relative_error(after.accumulator, wanted.accumulator) < LIMIT
        for key, tensor in after.moments.items():
            assert relative_error(tensor, wanted.moments[key]) < LIMIT
        untouched = [slot for slot in range(7) if slot not in [SLOTS[row] for row in range(6) if written[row]]]
        assert torch.equal(after.weights[untouched].cpu(), level.weights[untouched])


@pytest.mark.parametrize("dtype", TYPES)
def test_levels_of_every_rule_in_one_call_equal_the_reference(
    dtype: torch.dtype, device: torch.device, relative_error: Error
) -> None:
    """Rules with and without accumulators side by side, rows that are due, not due, not finite and without a slot."""
    levels = {}
    for name in NAMES:
        for accumulates in (False, True):
            levels[f"{name} {accumulates}"] = draw(name, 28, 7, 6, accumulates, torch.float32, dtype)
    check(levels, device, relative_error)


@pytest.mark.parametrize("num_weights", [1, 1023, 1024, 1025])
def test_sizes_around_a_program_equal_the_reference(
    num_weights: int, device: torch.device, relative_error: Error
) -> None:
    """A level of one weight, and those that fill a program's run, less one and more one."""
    check({"adam": draw("adam", num_weights, 7, 6, True, torch.float32)}, device, relative_error)


def test_a_step_of_no_size_leaves_the_weights(device: torch.device) -> None:
    """With lr 0 moments move and weights do not, bit for bit."""
    level = on(device, draw("adam", 40, 4, 4, False, torch.float32, norm_cap=1e9))
    assert level.element_rule is not None
    level.element_rule = replace(level.element_rule, lr=0.0)
    before = copied(level)
    gpu.write_([level], torch.ones(4, dtype=torch.bool, device=device), None)
    assert torch.equal(level.weights, before.weights)
    assert not torch.equal(level.moments["first_moment"], before.moments["first_moment"])


@pytest.mark.parametrize("count", [0, 1, 9_999])
def test_bias_is_taken_out_at_any_count(count: int, device: torch.device, relative_error: Error) -> None:
    """The first step, where nearly all is bias, and one so late that there is none left."""
    level = draw("adam", 20, 7, 6, False, torch.float32)
    level.num_steps = torch.full((7,), count)
    check({"adam": level}, device, relative_error)


def test_rows_that_are_not_written_keep_every_bit(device: torch.device) -> None:
    """Slots full of 1e30, and a NaN with its payload in a row that is not finite, stay as they are."""
    level = draw("adam", 1100, 7, 6, True, torch.float32)
    for tensor in (level.weights, level.accumulator, *level.moments.values()):
        tensor[[1, 2, 4]] = 1e30
    level.weights[2].view(torch.int32)[5] = 0x7FC12345
    level.gradient[3] = torch.nan
    after = on(device, level)
    after.weights = after.weights.clone()
    gpu.write_([after], torch.tensor(FINITE, device=device), torch.tensor(SLOTS, device=device))
    pairs = [(after.weights, level.weights), (after.accumulator, level.accumulator)]
    pairs += [(after.moments[key], level.moments[key]) for key in level.moments]
    for new, old in pairs:
        assert torch.equal(new.cpu().view(torch.int32)[[1, 2, 4]], old.view(torch.int32)[[1, 2, 4]])


def test_a_slot_beyond_the_pool_has_no_norm(device: torch.device) -> None:
    """It writes nothing, and NaN says so."""
    level = on(device, draw("sgd", 20, 4, 2, False, torch.float32))
    before = copied(level)
    found = gpu.write_([level], torch.ones(2, dtype=torch.bool, device=device), torch.tensor([4, 1], device=device))
    assert bool(found[0].norm[0].isnan()) and found[0].is_written.tolist() == [False, True]
    assert torch.equal(level.weights[[0, 2, 3]], before.weights[[0, 2, 3]])
