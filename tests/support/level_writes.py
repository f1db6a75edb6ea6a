"""Levels to be written, and what the reference makes of the same write, for the tests of `cms_update`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hope_kernels.cms_update import ElementRule, LevelWrite, reference

from hope_server.optim import make_rule

LR, BETAS = 0.05, (0.9, 0.99)
NAMES = ("sgd", "momentum", "adam", "m3")
COLUMNS = 4
"""Of m3's one matrix."""


def draw(
    name: str,
    num_weights: int,
    num_slots: int,
    num_rows: int,
    accumulates: bool = False,
    dtype: torch.dtype = torch.float64,
    gradient_dtype: torch.dtype | None = None,
    **changes: Any,
) -> LevelWrite:
    """A level of random weights, moments and gradients, some rows taught nothing, some due; changes: its fields."""
    rule = make_rule(name, LR, BETAS)
    pool = torch.randn(num_slots, num_weights, dtype=dtype)

    def matrices(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(1, (-1, COLUMNS)) if rule.needs_matrix else tensor

    def step(
        moments: dict[str, torch.Tensor], gradient: torch.Tensor, num_steps: torch.Tensor, drift: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        kept = {key: matrices(tensor) for key, tensor in moments.items()}
        change, after = rule.update(kept, matrices(gradient), num_steps, matrices(drift))
        return change.flatten(1), {key: tensor.flatten(1) for key, tensor in after.items()}

    level = LevelWrite(
        weights=pool,
        initial=torch.randn(num_weights, dtype=dtype),
        moments={key: 0.1 * torch.rand(num_slots, num_weights, dtype=dtype) for key in rule.init(matrices(pool))},
        accumulator=torch.randn(num_slots, num_weights if accumulates else 0, dtype=dtype),
        num_steps=torch.arange(num_slots) * 4,
        gradient=3 * torch.randn(num_rows, num_weights, dtype=dtype).to(gradient_dtype or dtype),
        num_taught=torch.arange(num_rows) % 4,
        is_due=torch.arange(num_rows) % 3 != 0,
        max_update_norm=1.0,
        # Around what random weights drift, so that some rows are pulled back.
        norm_cap=(2 * num_weights) ** 0.5,
        step=step,
        element_rule=ElementRule(name, LR, BETAS) if name != "m3" else None,
    )
    return replace(level, **changes)


def copied(level: LevelWrite) -> LevelWrite:
    """The same level with tensors of its own wherever a write changes them."""
    moments = {name: tensor.clone() for name, tensor in level.moments.items()}
    return replace(level, weights=level.weights.clone(), moments=moments, accumulator=level.accumulator.clone())


def expected(
    name: str, level: LevelWrite, finite: Sequence[bool], slots: Sequence[int]
) -> tuple[LevelWrite, list[float], list[bool]]:
    """What the reference leaves of a level, in float64, and its norms and writes of each row."""
    num_weights = level.weights.shape[1]
    step = {
        "sgd": reference.sgd(LR),
        "momentum": reference.momentum(LR, BETAS[0]),
        "adam": reference.adam(LR, BETAS, 1e-8),
        "m3": reference.m3(LR, (*BETAS, BETAS[0]), [(0, num_weights // COLUMNS, COLUMNS)]),
    }[name]
    moments = {key: tensor.double().clone() for key, tensor in level.moments.items()}
    after = replace(
        level, weights=level.weights.double(), moments=moments, accumulator=level.accumulator.double().clone()
    )
    after.weights = after.weights.clone()
    norms, written = [], []
    for row, slot in enumerate(slots):
        if slot < 0:
            norms.append(0.0)
            written.append(False)
            continue
        weights, kept, waiting, norm, is_written = reference.write_row(
            after.weights[slot].tolist(),
            level.initial.tolist(),
            {key: tensor[slot].tolist() for key, tensor in moments.items()},
            after.accumulator[slot].tolist(),
            int(level.num_steps[slot]),
            level.gradient[row].tolist(),
            int(level.num_taught[row]),
            bool(level.is_due[row]),
            finite[row],
            level.max_update_norm,
            level.norm_cap,
            step,
        )
        after.weights[slot] = torch.tensor(weights, dtype=torch.float64)
        after.accumulator[slot] = torch.tensor(waiting, dtype=torch.float64)
        for key, values in kept.items():
            moments[key][slot] = torch.tensor(values, dtype=torch.float64)
        norms.append(norm)
        written.append(is_written)
    return after, norms, written
