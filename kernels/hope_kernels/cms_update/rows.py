"""The torch form of `cms_update`: one level after another, all rows at once, any rule.

Shapes: B rows, S slots, P weights of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from hope_kernels.cms_update.level import LevelWrite, Written, cap_drift, clip_norm


def write_(levels: Sequence[LevelWrite], finite: torch.Tensor, slots: torch.Tensor | None) -> list[Written]:
    """See `hope_kernels.cms_update.write_`, which checks the arguments."""
    return [_write(level, finite) if slots is None else _write_slots(level, finite, slots) for level in levels]


def _write(level: LevelWrite, finite: torch.Tensor) -> Written:
    """Write a level whose slot i belongs to row i."""
    rows = (level.num_taught > 0) & finite
    mean = level.gradient.to(level.weights.dtype) / level.num_taught.clamp_min(1)[:, None]
    mean = torch.where(rows[:, None], mean, torch.zeros_like(mean))
    due = rows
    if level.accumulates:
        level.accumulator += mean
        due = finite & level.is_due & level.accumulator.any(dim=1)
        mean = level.accumulator.clone()
    if not bool(due.any()):
        return Written(torch.zeros_like(mean[:, 0]), due)
    clipped = clip_norm(mean, level.max_update_norm)
    change, moments = level.step(level.moments, clipped, level.num_steps + 1, level.weights - level.initial)
    written = cap_drift(level.weights + change, level.initial, level.norm_cap)
    norm = torch.where(due, (written - level.weights).norm(dim=1), torch.zeros_like(mean[:, 0]))
    mask = due[:, None]
    level.weights.copy_(torch.where(mask, written, level.weights))
    for name, kept in level.moments.items():
        kept.copy_(torch.where(mask, moments[name], kept))
    if level.accumulates:
        level.accumulator.masked_fill_(mask, 0.0)
    return Written(norm, due)


def _write_slots(level: LevelWrite, finite: torch.Tensor, slots: torch.Tensor) -> Written:
    """Write the slots of the rows that have one, as a level of their own."""
    rows = (slots >= 0).nonzero()[:, 0]
    chosen = slots[rows].long()
    own = replace(
        level,
        weights=level.weights[chosen],
        moments={name: tensor[chosen] for name, tensor in level.moments.items()},
        accumulator=level.accumulator[chosen],
        num_steps=level.num_steps[chosen],
        gradient=level.gradient[rows],
        num_taught=level.num_taught[rows],
        is_due=level.is_due[rows],
    )
    found = _write(own, finite[rows])
    level.weights.index_copy_(0, chosen, own.weights)
    level.accumulator.index_copy_(0, chosen, own.accumulator)
    for name, tensor in level.moments.items():
        tensor.index_copy_(0, chosen, own.moments[name])
    norm, is_written = found.norm.new_zeros(len(slots)), torch.zeros_like(finite)
    return Written(norm.index_copy_(0, rows, found.norm), is_written.index_copy_(0, rows, found.is_written))
