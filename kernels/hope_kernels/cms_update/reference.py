"""The truth for `cms_update`: one row, one weight at a time, in Python's own float64 numbers.

Shapes: P weights of a level; a matrix of m3 is (offset, rows, columns).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hope_kernels.newton_schulz import reference as newton_schulz

Numbers = list[float]
RowStep = Callable[[dict[str, Numbers], Numbers, int], tuple[Numbers, dict[str, Numbers]]]
"""Moments, gradient and the number of this step, from 1, to the change and the new moments."""


def write_row(
    weights: Numbers,
    initial: Numbers,
    moments: dict[str, Numbers],
    accumulator: Numbers,
    num_steps: int,
    gradient: Numbers,
    num_taught: int,
    is_due: bool,
    is_finite: bool,
    max_update_norm: float,
    norm_cap: float,
    step: RowStep,
) -> tuple[Numbers, dict[str, Numbers], Numbers, float, bool]:
    """Give one row of a level its gradient (accumulator: empty where none waits).

    Returns weights, moments and accumulator after it, the norm of the write, and whether there was one.
    """
    if not is_finite:
        return weights, moments, accumulator, 0.0, False
    mean = [value / num_taught for value in gradient] if num_taught else [0.0 for _ in gradient]
    if accumulator:
        accumulator = [waiting + value for waiting, value in zip(accumulator, mean, strict=True)]
        mean = accumulator
        is_written = is_due and any(accumulator)
    else:
        is_written = num_taught > 0
    if not is_written:
        return weights, moments, accumulator, 0.0, False
    norm = _norm(mean)
    clipped = [value * min(1.0, max_update_norm / norm) if norm else value for value in mean]
    change, moments = step(moments, clipped, num_steps + 1)
    drift = [weight + moved - start for weight, moved, start in zip(weights, change, initial, strict=True)]
    size = _norm(drift)
    pull = norm_cap / size if size > norm_cap else 1.0
    written = [start + pull * moved for start, moved in zip(initial, drift, strict=True)]
    moved = _norm([new - old for new, old in zip(written, weights, strict=True)])
    return written, moments, [0.0 for _ in accumulator], moved, True


def sgd(lr: float) -> RowStep:
    """`W <- W - lr g`. Source: NL eq. 32."""
    return lambda moments, gradient, count: ([-lr * value for value in gradient], {})


def momentum(lr: float, beta: float) -> RowStep:
    """`W <- W - lr m`, m the running mean of gradients without its bias. Source: NL eq. 33."""

    def step(moments: dict[str, Numbers], gradient: Numbers, count: int) -> tuple[Numbers, dict[str, Numbers]]:
        first = _taken(moments["first_moment"], gradient, beta)
        return [-lr * value / (1 - beta**count) for value in first], {"first_moment": first}

    return step


def adam(lr: float, betas: tuple[float, float], epsilon: float) -> RowStep:
    """`W <- W - lr m / (sqrt(v) + epsilon)`, both without their bias. Source: NL eq. 101-105."""

    def step(moments: dict[str, Numbers], gradient: Numbers, count: int) -> tuple[Numbers, dict[str, Numbers]]:
        first = _taken(moments["first_moment"], gradient, betas[0])
        second = _taken(moments["second_moment"], [value * value for value in gradient], betas[1])
        change = []
        for mean, square in zip(first, second, strict=True):
            root = math.sqrt(max(square / (1 - betas[1] ** count), 1e-32)) + epsilon
            change.append(-lr * mean / (1 - betas[0] ** count) / root)
        return change, {"first_moment": first, "second_moment": second}

    return step


def m3(
    lr: float,
    betas: tuple[float, float, float],
    matrices: list[tuple[int, int, int]],
    slow_share: float = 0.5,
    slow_period: int = 8,
    num_iterations: int = 5,
    epsilon: float = 1e-8,
) -> RowStep:
    """`W <- W - lr rms1((NS(m1) + slow_share NS(m2)) / (sqrt(v) + epsilon))` a matrix. Source: NL eq. 75, Algorithm 1.

    NS: Newton-Schulz; rms1: scaled to a root mean square of 1; m2 takes in the mean gradient of each period that ended.
    """

    def step(moments: dict[str, Numbers], gradient: Numbers, count: int) -> tuple[Numbers, dict[str, Numbers]]:
        slow, pending = moments["slow_moment"], moments["pending_moment"]
        if count > 1 and (count - 1) % slow_period == 0:
            slow = _taken(slow, [value / slow_period for value in pending], betas[2])
            pending = [0.0 for _ in pending]
        first = _taken(moments["first_moment"], gradient, betas[0])
        second = _taken(moments["second_moment"], [value * value for value in gradient], betas[1])
        change = [0.0 for _ in gradient]
        for offset, num_rows, num_columns in matrices:
            part = range(offset, offset + num_rows * num_columns)
            fast_turned = _orthogonal([first[i] for i in part], num_rows, num_iterations)
            slow_turned = _orthogonal([slow[i] for i in part], num_rows, num_iterations)
            found = []
            for i, fast_value, slow_value in zip(part, fast_turned, slow_turned, strict=True):
                root = math.sqrt(max(second[i] / (1 - betas[1] ** count), 1e-32)) + epsilon
                found.append((fast_value + slow_share * slow_value) / root)
            norm = _norm(found)
            for i, value in zip(part, found, strict=True):
                change[i] = -lr * value * math.sqrt(len(part)) / (norm or 1.0)
        pending = [waiting + value for waiting, value in zip(pending, gradient, strict=True)]
        kept = {"first_moment": first, "second_moment": second, "slow_moment": slow, "pending_moment": pending}
        return change, kept

    return step


def _taken(past: Numbers, value: Numbers, beta: float) -> Numbers:
    return [beta * old + (1 - beta) * new for old, new in zip(past, value, strict=True)]


def _norm(values: Numbers) -> float:
    return math.sqrt(sum(value * value for value in values))


def _orthogonal(values: Numbers, num_rows: int, num_steps: int) -> Numbers:
    matrix = torch.tensor(values, dtype=torch.float64).view(num_rows, -1)
    flat: Numbers = newton_schulz.newton_schulz(matrix[None], num_steps)[0].flatten().tolist()
    return flat
