"""The Triton form of `cms_update`: all levels and rows in one launch a pass.

Shapes: L levels, B rows, S slots, P weights of a level.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from hope_kernels.cms_update import gpu_kernels
from hope_kernels.cms_update.gpu_kernels import Column, Rule
from hope_kernels.cms_update.level import LevelWrite, Written
from hope_kernels.launch import KernelConfig, require_device

_RUN = 1024
"""Weights that a program covers."""
_RULES = {"sgd": Rule.SGD, "momentum": Rule.MOMENTUM, "adam": Rule.ADAM}
_GRADIENTS = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def _configs(dtype: torch.dtype) -> dict[str, KernelConfig]:
    """The passes over gradients of this type, by name."""
    shared = {"table": "*i64", "slots": "*i32", "finite": "*i8", "sums": "*fp32"}
    counts = {"num_levels": "i32", "num_slots": "i32", "num_programs": "i32"}
    more = {"norms": "*fp32", "due": "*i32"}
    kind, label = {"GRADIENT_TYPE": _GRADIENTS[dtype], "RUN": _RUN}, str(dtype).removeprefix("torch.")

    def config(name: str, kernel: object, signature: dict[str, str], constants: dict[str, object]) -> KernelConfig:
        return KernelConfig(f"{name} {label}", kernel, signature, constants, num_warps=4, num_stages=1)

    return {
        "accumulate": config("accumulate", gpu_kernels.accumulate, shared | counts, kind),
        "step": config("step", gpu_kernels.step, shared | more | counts, kind | {"APPLIES": False}),
        "apply": config("apply", gpu_kernels.step, shared | more | counts, kind | {"APPLIES": True}),
    }


def _total(is_first: bool) -> KernelConfig:
    """The sums after the first pass, or after another."""
    signature = {"table": "*i64", "slots": "*i32", "finite": "*i8", "sums": "*fp32", "norms": "*fp32", "due": "*i32"}
    signature |= {"num_levels": "i32", "num_slots": "i32", "num_programs": "i32"}
    label = f"total {'with due' if is_first else 'alone'}"
    constants = {"IS_FIRST": is_first, "RUN": _RUN}
    return KernelConfig(label, gpu_kernels.total, signature, constants, num_warps=4, num_stages=1)


def configs() -> tuple[KernelConfig, ...]:
    """Every configuration that `write_` chooses from."""
    passes = [config for dtype in _GRADIENTS for config in _configs(dtype).values()]
    return (*passes, _total(True), _total(False))


def write_(levels: Sequence[LevelWrite], finite: torch.Tensor, slots: torch.Tensor | None) -> list[Written]:
    """See `hope_kernels.cms_update.write_`, which checks the arguments; weights are float32.

    Six launches for any number of levels and rows. A level whose rule is not an element rule is stepped by torch
    between the first and the second pass, which waits for the device.
    """
    device, num_rows, num_slots = finite.device, len(finite), len(levels[0].weights)
    require_device(device)
    if slots is None:
        slots = torch.arange(num_rows, dtype=torch.int32, device=device)
    changes = [
        None if level.element_rule else torch.zeros_like(level.gradient, dtype=torch.float32) for level in levels
    ]
    rows, num_programs = [], 0
    for level, change in zip(levels, changes, strict=True):
        rows += _row(level, change, num_programs)
        num_programs += triton.cdiv(level.weights.shape[1], _RUN)
    passes = _configs(levels[0].gradient.dtype)
    norms = torch.empty(3, len(levels), num_rows, dtype=torch.float32, device=device)
    due = torch.empty(len(levels), num_rows, dtype=torch.int32, device=device)
    sums = torch.empty(2, num_rows, num_programs, dtype=torch.float32, device=device)
    shared: dict[str, Any] = {"table": torch.tensor(rows, dtype=torch.int64).to(device), "slots": slots.to(torch.int32)}
    shared |= {"finite": finite.view(torch.int8), "sums": sums}
    shared |= {"num_levels": len(levels), "num_slots": num_slots, "num_programs": num_programs}
    grid, few = (num_programs, num_rows), (len(levels), num_rows)
    passes["accumulate"].launch(grid, shared)
    _total(True).launch(few, shared | {"norms": norms[0], "due": due})
    for number, (level, change) in enumerate(zip(levels, changes, strict=True)):
        if change is not None:
            _step_given(level, change, norms[0, number], due[number] != 0, slots)
    passes["step"].launch(grid, shared | {"norms": norms, "due": due})
    _total(False).launch(few, shared | {"norms": norms[1], "due": due})
    passes["apply"].launch(grid, shared | {"norms": norms, "due": due})
    _total(False).launch(few, shared | {"norms": norms[2], "due": due})
    return [Written(norm, is_due != 0) for norm, is_due in zip(norms[2], due, strict=True)]


def _step_given(
    level: LevelWrite, change: torch.Tensor, norms: torch.Tensor, due: torch.Tensor, slots: torch.Tensor
) -> None:
    """Step a level by its own rule in the rows that are due: fills change [B, P], writes the moments."""
    rows = due.nonzero()[:, 0]
    if not len(rows):
        return
    chosen = slots[rows].long()
    if level.accumulates:
        mean = level.accumulator[chosen]
    else:
        mean = level.gradient[rows].float() / level.num_taught[rows][:, None]
    clipped = mean * (level.max_update_norm / norms[rows].clamp_min(1e-30)).clamp(max=1.0)[:, None]
    kept = {name: tensor[chosen] for name, tensor in level.moments.items()}
    found, moments = level.step(kept, clipped, level.num_steps[chosen] + 1, level.weights[chosen] - level.initial)
    change[rows] = found
    for name, tensor in level.moments.items():
        tensor[chosen] = moments[name]


def _row(level: LevelWrite, change: torch.Tensor | None, first_program: int) -> list[int]:
    """The table's row for a level."""
    rule = level.element_rule
    first, second = level.moments.get("first_moment"), level.moments.get("second_moment")
    tensors = {
        Column.WEIGHTS: level.weights,
        Column.INITIAL: level.initial,
        Column.FIRST: None if rule is None else first,
        Column.SECOND: None if rule is None else second,
        Column.ACCUMULATOR: level.accumulator if level.accumulates else None,
        Column.GRADIENT: level.gradient,
        Column.CHANGE: change,
        Column.NUM_STEPS: level.num_steps,
        Column.NUM_TAUGHT: level.num_taught,
        Column.IS_DUE: level.is_due,
    }
    out = dict.fromkeys(Column, 0)
    for column, tensor in tensors.items():
        if tensor is not None:
            out[column] = tensor.data_ptr()
            step = Column.__members__.get(f"{column.name}_STEP")
            if step is not None:
                out[step] = tensor.stride(0)
    out[Column.SIZE], out[Column.FIRST_PROGRAM] = level.weights.shape[1], first_program
    numbers = {Column.MAX_UPDATE_NORM: level.max_update_norm, Column.NORM_CAP: level.norm_cap}
    out[Column.RULE] = Rule.GIVEN
    if rule is not None:
        out[Column.RULE] = _RULES[rule.name]
        numbers |= {Column.LR: rule.lr, Column.EPSILON: rule.epsilon}
        numbers |= {Column.FIRST_BETA: rule.betas[0], Column.SECOND_BETA: rule.betas[1]}
    for column, number in numbers.items():
        out[column] = struct.unpack("<q", struct.pack("<d", number))[0]
    return [int(out[column]) for column in Column]
