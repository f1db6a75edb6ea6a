"""The write of CMS levels: checks the arguments and runs the form that fits their device.

Shapes: B rows, S slots, P weights of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hope_kernels.cms_update import rows
from hope_kernels.cms_update.level import MOMENT_NAMES, LevelWrite, Written
from hope_kernels.dispatch import uses_triton
from hope_kernels.launch import require
from hope_kernels.slots import check_slots

_GRADIENTS = (torch.float32, torch.float16, torch.bfloat16)


@torch.no_grad()
def write_(
    levels: Sequence[LevelWrite], finite: torch.Tensor | None = None, slots: torch.Tensor | None = None
) -> list[Written]:
    """Accumulate or apply what each level is given, in place; returns what was written, a level at a time.

    A row's mean gradient joins what waits in its accumulator. In a row that is due (one that taught, or, with an
    accumulator, one whose period ends and whose accumulator is not all zeros) the sum is clipped, the rule makes a
    change of it, the drift is capped, and the accumulator is emptied. All other rows keep weights and moments bit for
    bit, and rows that are not finite their accumulators as well.
    finite [B] bool: rows that may be written; None: those in which all gradients of all these levels are finite.
    slots [B], int32 or int64, different from each other: where in the levels' [S, ...] a row lies, nowhere if negative;
    None: row i is slot i. Raises ValueError on arguments that do not fit. Source: NL eq. 71.
    """
    if not levels:
        return []
    first = levels[0]
    num_rows, num_slots, device = len(first.gradient), len(first.weights), first.weights.device
    if slots is None:
        require(num_rows == num_slots, "slots", f"must be given: {num_rows} rows, {num_slots} slots")
    else:
        check_slots(slots, num_slots, device, num_rows)
        if device.type == "cpu":
            taken = slots[slots >= 0]
            require(len(taken.unique()) == len(taken), "slots", "must differ from each other")
    for number, level in enumerate(levels):
        _check(level, f"levels[{number}]", num_rows, num_slots, device)
    if finite is None:
        finite = torch.stack([torch.isfinite(level.gradient).all(dim=1) for level in levels]).all(dim=0)
    _require_like(finite, "finite", (num_rows,), (torch.bool,), device)
    in_triton = all(level.weights.dtype == torch.float32 for level in levels)
    one_type = len({level.gradient.dtype for level in levels}) == 1 and first.gradient.dtype in _GRADIENTS
    if in_triton and one_type and uses_triton(first.weights, finite, slots):
        from hope_kernels.cms_update import gpu

        return gpu.write_(levels, finite, slots)
    return rows.write_(levels, finite, slots)


def _check(level: LevelWrite, name: str, num_rows: int, num_slots: int, device: torch.device) -> None:
    size, dtype = level.weights.shape[-1], level.weights.dtype
    require(level.weights.is_floating_point(), f"{name}.weights", f"must be of a floating dtype, is {dtype}")
    _require_like(level.weights, f"{name}.weights", (num_slots, size), (dtype,), device)
    _require_like(level.initial, f"{name}.initial", (size,), (dtype,), device)
    waiting = size if level.accumulator.shape[-1:] != (0,) else 0
    _require_like(level.accumulator, f"{name}.accumulator", (num_slots, waiting), (dtype,), device)
    _require_like(level.num_steps, f"{name}.num_steps", (num_slots,), (torch.int64,), device)
    _require_like(level.gradient, f"{name}.gradient", (num_rows, size), (dtype, *_GRADIENTS), device)
    _require_like(level.num_taught, f"{name}.num_taught", (num_rows,), (torch.int64,), device)
    _require_like(level.is_due, f"{name}.is_due", (num_rows,), (torch.bool,), device)
    for moment, tensor in level.moments.items():
        wanted = (num_slots, tensor.shape[-1] if tensor.dim() else 0)
        _require_like(tensor, f"{name}.moments[{moment!r}]", wanted, (dtype,), device)
    rule = level.element_rule
    if rule is not None:
        require(rule.name in MOMENT_NAMES, f"{name}.element_rule", f"must be one of {', '.join(MOMENT_NAMES)}")
        wanted_names = set(MOMENT_NAMES[rule.name])
        is_fit = set(level.moments) == wanted_names and all(t.shape[1] == size for t in level.moments.values())
        require(is_fit, f"{name}.moments", f"must be {sorted(wanted_names)} of {size} weights, for {rule.name}")


def _require_like(
    tensor: torch.Tensor, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Shape, type, device, and weights side by side."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: must have shape {list(shape)}, has {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: must be {' or '.join(map(str, dict.fromkeys(dtypes)))}, is {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: must be on {device}, is on {tensor.device}")
    if len(shape) == 2 and shape[1] > 1 and tensor.stride(1) != 1:
        raise ValueError(f"{name}: must have a row's numbers side by side (last stride 1), has {tensor.stride(1)}")
