"""The Triton kernels of `cms_update`: three passes over the weights of all levels, and the sums between them.

Shapes: L levels, B rows, S slots, P weights of a level, n programs a row. A program covers a run of one level's weights
in one row; it finds its level in a table of L rows of int64 numbers (`Column`), addresses among them.
"""

from __future__ import annotations

from enum import IntEnum

import triton
import triton.language as tl


class Column(IntEnum):
    """What a table row says of its level: addresses, steps from row to row in elements, sizes, bits of float64."""

    WEIGHTS = 0
    INITIAL = 1
    FIRST = 2
    SECOND = 3
    ACCUMULATOR = 4
    GRADIENT = 5
    CHANGE = 6
    NUM_STEPS = 7
    NUM_TAUGHT = 8
    IS_DUE = 9
    WEIGHTS_STEP = 10
    FIRST_STEP = 11
    SECOND_STEP = 12
    ACCUMULATOR_STEP = 13
    GRADIENT_STEP = 14
    NUM_STEPS_STEP = 15
    NUM_TAUGHT_STEP = 16
    IS_DUE_STEP = 17
    SIZE = 18
    FIRST_PROGRAM = 19
    RULE = 20
    LR = 21
    FIRST_BETA = 22
    SECOND_BETA = 23
    EPSILON = 24
    MAX_UPDATE_NORM = 25
    NORM_CAP = 26


class Rule(IntEnum):
    """What makes the change: the table's own arithmetic, or what was put at its address before."""

    GIVEN = 0
    SGD = 1
    MOMENTUM = 2
    ADAM = 3


COLUMNS = tl.constexpr(len(Column))
_WEIGHTS = tl.constexpr(Column.WEIGHTS.value)
_INITIAL = tl.constexpr(Column.INITIAL.value)
_FIRST = tl.constexpr(Column.FIRST.value)
_SECOND = tl.constexpr(Column.SECOND.value)
_ACCUMULATOR = tl.constexpr(Column.ACCUMULATOR.value)
_GRADIENT = tl.constexpr(Column.GRADIENT.value)
_CHANGE = tl.constexpr(Column.CHANGE.value)
_NUM_STEPS = tl.constexpr(Column.NUM_STEPS.value)
_NUM_TAUGHT = tl.constexpr(Column.NUM_TAUGHT.value)
_IS_DUE = tl.constexpr(Column.IS_DUE.value)
_WEIGHTS_STEP = tl.constexpr(Column.WEIGHTS_STEP.value)
_FIRST_STEP = tl.constexpr(Column.FIRST_STEP.value)
_SECOND_STEP = tl.constexpr(Column.SECOND_STEP.value)
_ACCUMULATOR_STEP = tl.constexpr(Column.ACCUMULATOR_STEP.value)
_GRADIENT_STEP = tl.constexpr(Column.GRADIENT_STEP.value)
_NUM_STEPS_STEP = tl.constexpr(Column.NUM_STEPS_STEP.value)
_NUM_TAUGHT_STEP = tl.constexpr(Column.NUM_TAUGHT_STEP.value)
_IS_DUE_STEP = tl.constexpr(Column.IS_DUE_STEP.value)
_SIZE = tl.constexpr(Column.SIZE.value)
_FIRST_PROGRAM = tl.constexpr(Column.FIRST_PROGRAM.value)
_RULE = tl.constexpr(Column.RULE.value)
_LR = tl.constexpr(Column.LR.value)
_FIRST_BETA = tl.constexpr(Column.FIRST_BETA.value)
_SECOND_BETA = tl.constexpr(Column.SECOND_BETA.value)
_EPSILON = tl.constexpr(Column.EPSILON.value)
_MAX_UPDATE_NORM = tl.constexpr(Column.MAX_UPDATE_NORM.value)
_NORM_CAP = tl.constexpr(Column.NORM_CAP.value)
_GIVEN, _SGD = tl.constexpr(Rule.GIVEN.value), tl.constexpr(Rule.SGD.value)
_MOMENTUM, _ADAM = tl.constexpr(Rule.MOMENTUM.value), tl.constexpr(Rule.ADAM.value)


@triton.jit
def _find(table, num_levels):
    """The number of this program's level: the last that begins at or before it."""
    program = tl.program_id(0)
    low = tl.zeros([], tl.int64)
    high = low + num_levels
    while high - low > 1:
        middle = (low + high) // 2
        is_after = tl.load(table + middle * COLUMNS + _FIRST_PROGRAM) > program
        high = tl.where(is_after, middle, high)
        low = tl.where(is_after, low, middle)
    return low


@triton.jit
def _number(level, COLUMN: tl.constexpr):
    """A float64 of the table."""
    return tl.load(level + COLUMN).to(tl.float64, bitcast=True)


@triton.jit
def _floats(level, COLUMN: tl.constexpr):
    """An address of the table, of float32 numbers."""
    return tl.load(level + COLUMN).to(tl.pointer_type(tl.float32))


@triton.jit
def _mean(level, row, slot, place, inside, teaches, GRADIENT_TYPE: tl.constexpr, JOINS: tl.constexpr):
    """A run of what the rule is to step along: the accumulator, or the mean gradient where there is none.

    JOINS: the mean gradient joins the accumulator first. Returns the run and where it lies, had it an accumulator.
    """
    gradient = tl.load(level + _GRADIENT).to(tl.pointer_type(GRADIENT_TYPE)) + row * tl.load(level + _GRADIENT_STEP)
    num_taught = tl.load(
        tl.load(level + _NUM_TAUGHT).to(tl.pointer_type(tl.int64)) + row * tl.load(level + _NUM_TAUGHT_STEP)
    )
    accumulates = tl.load(level + _ACCUMULATOR) != 0
    waiting = _floats(level, _ACCUMULATOR) + slot * tl.load(level + _ACCUMULATOR_STEP) + place
    teaches = teaches & (num_taught > 0)
    reads = inside & teaches & (JOINS | (accumulates == 0))
    given = tl.load(gradient + place, mask=reads, other=0.0).to(tl.float32) / tl.maximum(num_taught, 1).to(tl.float32)
    mean = given + tl.load(waiting, mask=inside & accumulates, other=0.0)
    if JOINS:
        tl.store(waiting, mean, mask=reads & accumulates)
    return mean


@triton.jit
def accumulate(
    table, slots, finite, sums, num_levels, num_slots, num_programs,
    GRADIENT_TYPE: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """First pass: mean gradients join accumulators. sums [2, B, n]: squares, and the largest size."""
    number = _find(table, num_levels)
    level = table + number * COLUMNS
    row = tl.program_id(1).to(tl.int64)
    slot = tl.load(slots + row).to(tl.int64)
    is_there = (slot >= 0) & (slot < num_slots)
    place = (tl.program_id(0) - tl.load(level + _FIRST_PROGRAM)) * RUN + tl.arange(0, RUN)
    teaches = tl.load(finite + row) != 0
    inside = (place < tl.load(level + _SIZE)) & is_there & teaches
    mean = _mean(level, row, tl.where(is_there, slot, 0), place, inside, teaches, GRADIENT_TYPE, True)
    place = row * num_programs + tl.program_id(0)
    tl.store(sums + place, tl.sum(mean * mean, axis=0))
    tl.store(sums + tl.num_programs(1).to(tl.int64) * num_programs + place, tl.max(tl.abs(mean), axis=0))


@triton.jit
def total(
    table, slots, finite, sums, norms, due, num_levels, num_slots, num_programs, IS_FIRST: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    """Between passes: norms [L, B] of a pass's sums; after the first, also which rows are due [L, B] int32."""
    number, row = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    level = table + number * COLUMNS
    first = tl.load(level + _FIRST_PROGRAM)
    last = first + (tl.load(level + _SIZE) + RUN - 1) // RUN
    squares, largest = tl.zeros([RUN], tl.float32), tl.zeros([RUN], tl.float32)
    for start in range(0, (last - first).to(tl.int32), RUN):
        place = first + start + tl.arange(0, RUN)
        squares += tl.load(sums + row * num_programs + place, mask=place < last, other=0.0)
        if IS_FIRST:
            sizes = sums + (tl.num_programs(1).to(tl.int64) + row) * num_programs
            largest = tl.maximum(largest, tl.load(sizes + place, mask=place < last, other=0.0))
    slot = tl.load(slots + row).to(tl.int64)
    # A slot beyond the pool is a fault of the caller's: its norm must not pass for one.
    norm = tl.where(slot < num_slots, tl.sqrt(tl.sum(squares, axis=0)), float("nan"))
    target = number * tl.num_programs(1) + row
    tl.store(norms + target, norm)
    if IS_FIRST:
        taught = tl.load(level + _NUM_TAUGHT).to(tl.pointer_type(tl.int64)) + row * tl.load(level + _NUM_TAUGHT_STEP)
        period = tl.load(level + _IS_DUE).to(tl.pointer_type(tl.int8)) + row * tl.load(level + _IS_DUE_STEP)
        accumulates = tl.load(level + _ACCUMULATOR) != 0
        waits = (tl.load(period) != 0) & (tl.max(largest, axis=0) > 0)
        is_due = tl.where(accumulates, waits, tl.load(taught) > 0) & (tl.load(finite + row) != 0)
        tl.store(due + target, (is_due & (slot >= 0) & (slot < num_slots)).to(tl.int32))


@triton.jit
def _power(base, exponent):
    """base to a whole exponent, 0 or more, in float64: near 1 float32 has too few digits for what is left to 1."""
    power = base * 0 + 1.0
    while exponent > 0:
        power = tl.where(exponent % 2 == 1, power * base, power)
        base = base * base
        exponent = exponent // 2
    return power


@triton.jit
def _share(norm, limit):
    """What is left of a vector whose norm may not pass the limit."""
    return tl.where(norm > limit, limit / tl.where(norm > limit, norm, 1.0), 1.0)


@triton.jit
def _change(level, rule, row, slot, place, inside, mean, first, second, size):
    """What the rule adds to a run of weights. mean: clipped; first, second: moments with this step."""
    count = tl.load(tl.load(level + _NUM_STEPS).to(tl.pointer_type(tl.int64)) + slot * tl.load(level + _NUM_STEPS_STEP))
    first_left = (1.0 - _power(_number(level, _FIRST_BETA), count + 1)).to(tl.float32)
    second_left = (1.0 - _power(_number(level, _SECOND_BETA), count + 1)).to(tl.float32)
    lr = _number(level, _LR).to(tl.float32)
    root = tl.sqrt(tl.maximum(second / second_left, 1e-32)) + _number(level, _EPSILON).to(tl.float32)
    change = tl.where(rule == _SGD, -lr * mean, -lr * (first / first_left) / tl.where(rule == _ADAM, root, 1.0))
    given = tl.load(_floats(level, _CHANGE) + row * size + place, mask=inside & (rule == _GIVEN), other=0.0)
    return tl.where(rule == _GIVEN, given, change)


@triton.jit
def step(
    table, slots, finite, sums, norms, due, num_levels, num_slots, num_programs,
    GRADIENT_TYPE: tl.constexpr, APPLIES: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Second and third pass. norms [2, L, B]: of what was accumulated, and of the drift after the second pass.

    The second takes the gradient into the moments and sums the squares of the drift [B, n]; the third (APPLIES) makes
    the same change again out of the new moments, writes the weights, and sums the squares of the write.
    """
    number = _find(table, num_levels)
    level = table + number * COLUMNS
    row = tl.program_id(1).to(tl.int64)
    entry = number * tl.num_programs(1) + row
    slot = tl.load(slots + row).to(tl.int64)
    is_due = tl.load(due + entry) != 0
    slot = tl.where(is_due, slot, 0)
    size, rule = tl.load(level + _SIZE), tl.load(level + _RULE)
    place = (tl.program_id(0) - tl.load(level + _FIRST_PROGRAM)) * RUN + tl.arange(0, RUN)
    inside = (place < size) & is_due
    scale = _share(tl.load(norms + entry), _number(level, _MAX_UPDATE_NORM).to(tl.float32))
    teaches = tl.load(finite + row) != 0
    uses_mean = inside & ((rule == _SGD) if APPLIES else (rule != _GIVEN))
    mean = scale * _mean(level, row, slot, place, uses_mean, teaches, GRADIENT_TYPE, False)
    has_first, has_second = inside & ((rule == _MOMENTUM) | (rule == _ADAM)), inside & (rule == _ADAM)
    first_at = _floats(level, _FIRST) + slot * tl.load(level + _FIRST_STEP) + place
    second_at = _floats(level, _SECOND) + slot * tl.load(level + _SECOND_STEP) + place
    first = tl.load(first_at, mask=has_first, other=0.0)
    second = tl.load(second_at, mask=has_second, other=0.0)
    if not APPLIES:
        beta, other_beta = _number(level, _FIRST_BETA), _number(level, _SECOND_BETA)
        first = beta.to(tl.float32) * first + (1.0 - beta).to(tl.float32) * mean
        second = other_beta.to(tl.float32) * second + (1.0 - other_beta).to(tl.float32) * mean * mean
        tl.store(first_at, first, mask=has_first)
        tl.store(second_at, second, mask=has_second)
    weights_at = _floats(level, _WEIGHTS) + slot * tl.load(level + _WEIGHTS_STEP) + place
    weights = tl.load(weights_at, mask=inside, other=0.0)
    initial = tl.load(_floats(level, _INITIAL) + place, mask=inside, other=0.0)
    change = _change(level, rule, row, slot, place, inside, mean, first, second, size)
    written = weights + tl.where(inside, change, 0.0)
    if APPLIES:
        cap = _number(level, _NORM_CAP).to(tl.float32)
        norm = tl.load(norms + num_levels * tl.num_programs(1) + entry)
        pulled = initial + (written - initial) * _share(norm, cap)
        written = tl.where(norm > cap, pulled, written)
        tl.store(weights_at, written, mask=inside)
        waiting = _floats(level, _ACCUMULATOR) + slot * tl.load(level + _ACCUMULATOR_STEP) + place
        tl.store(waiting, tl.zeros_like(written), mask=inside & (tl.load(level + _ACCUMULATOR) != 0))
        moved = written - weights
    else:
        moved = written - initial
    tl.store(sums + row * num_programs + tl.program_id(0), tl.sum(moved * moved, axis=0))
