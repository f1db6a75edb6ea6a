"""Linear maps whose weights belong to a row: checks the arguments and runs the form that fits their device.

Shapes: B rows, T tokens, I inputs, O outputs, r rank, S slots of a pool of weights.
"""

from __future__ import annotations

import torch

from hope_kernels.dispatch import uses_triton
from hope_kernels.fast_linear import batched
from hope_kernels.launch import require
from hope_kernels.slots import check_slots

LowRank = tuple[torch.Tensor, torch.Tensor]
"""The factors of a low-rank weight B A: a [.., r, I], then b [.., O, r]."""

_IN_TRITON = (torch.float32, torch.float16, torch.bfloat16)


def low_rank_delta(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply each row's own B A to its tokens.

    x [B, T, I], a [B, r, I], b [B, O, r]; one row of weights serves every row of x. slots [B], int32 or int64: a and b
    are then pools [S, r, I] and [S, O, r], of which row i takes slots[i]; a row whose slot is negative gets zeros.
    Returns [B, T, O]; differentiable. Raises ValueError on arguments that do not fit.
    """
    return _run(x, None, None, (a, b), slots)


def dense_delta(x: torch.Tensor, w: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
    """Apply each row's own matrix to its tokens.

    x [B, T, I], w [B, O, I]; one row of weights serves every row of x. slots [B], int32 or int64: w is then a pool
    [S, O, I], of which row i takes slots[i]; a row whose slot is negative gets zeros.
    Returns [B, T, O]; differentiable. Raises ValueError on arguments that do not fit.
    """
    return _run(x, None, w, None, slots)


def fast_linear(
    x: torch.Tensor,
    base: torch.Tensor,
    dense: torch.Tensor | None = None,
    low_rank: LowRank | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply a weight that all rows share, and add what each row's own weights make of its tokens.

    x [B, T, I]; base [O, I]; dense, low_rank: a row's own weights or pools of them, as w, a and b of `dense_delta` and
    `low_rank_delta`; slots [B]: as there, a row whose slot is negative gets the shared weight's outputs alone.
    Own weights may be float32 beside x in half precision: products are taken in x's type.
    Returns [B, T, O]; differentiable. Raises ValueError on arguments that do not fit.
    """
    _require_matrix(x, base)
    return _run(x, base, dense, low_rank, slots)


def _run(
    x: torch.Tensor,
    base: torch.Tensor | None,
    dense: torch.Tensor | None,
    low_rank: LowRank | None,
    slots: torch.Tensor | None,
) -> torch.Tensor:
    num_outputs = None if base is None else base.shape[0]
    if dense is not None:
        _check_own(x, dense, "w", slots)
        _require_outputs(dense, "w", num_outputs)
    if low_rank is not None:
        a, b = low_rank
        _check_own(x, a, "a", slots)
        _check_type(x, b, "b")
        if b.dim() != 3 or b.shape[0] != a.shape[0] or b.shape[2] != a.shape[1]:
            raise ValueError(f"b: expected [{a.shape[0]}, O, {a.shape[1]}], got {tuple(b.shape)}")
        _require_outputs(b, "b", num_outputs)
    pools = [dense, *(low_rank or ())]
    own = [pool for pool in pools if pool is not None]
    require(len({pool.dtype for pool in own}) <= 1, "b", "must be of one type with the others")
    if slots is not None:
        sizes = [len(pool) for pool in own]
        require(len(set(sizes)) <= 1, "w", f"dense and low-rank pools must have as many slots, have {sizes}")
        check_slots(slots, sizes[0] if sizes else 2**31 - 1, x.device, len(x))
    if x.dtype in _IN_TRITON and uses_triton(x, base, *pools, slots):
        from hope_kernels.fast_linear import gpu

        return gpu.fast_linear(x, base, dense, low_rank, slots)
    return batched.fast_linear(x, base, dense, low_rank, slots)


def _check_own(x: torch.Tensor, w: torch.Tensor, name: str, slots: torch.Tensor | None) -> None:
    """A weight that belongs to a row fits x: rows, inputs, type and device."""
    is_matrix = x.dim() == 3 and w.dim() == 3
    if not is_matrix or w.shape[2] != x.shape[2] or (slots is None and w.shape[0] not in (1, x.shape[0])):
        first = "B or 1" if slots is None else "S"
        raise ValueError(f"{name}: expected [{first}, *, {x.shape[-1]}] for x {tuple(x.shape)}, got {tuple(w.shape)}")
    _check_type(x, w, name)


def _require_matrix(x: torch.Tensor, base: torch.Tensor) -> None:
    if x.dim() != 3 or base.dim() != 2 or base.shape[1] != x.shape[2]:
        raise ValueError(f"base: expected [O, {x.shape[-1]}] for x {tuple(x.shape)}, got {tuple(base.shape)}")
    if base.dtype != x.dtype:
        raise ValueError(f"base: must be of x's type {x.dtype}, is {base.dtype}")
    if base.device != x.device:
        raise ValueError(f"base: must be on {x.device}, is on {base.device}")


def _require_outputs(w: torch.Tensor, name: str, num_outputs: int | None) -> None:
    if num_outputs not in (None, w.shape[1]):
        raise ValueError(f"{name}: must have the base's {num_outputs} outputs, has {w.shape[1]}")


def _check_type(x: torch.Tensor, w: torch.Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x: must be of a floating dtype, is {x.dtype}")
    if w.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"{name}: must be of x's type {x.dtype} or float32, is {w.dtype}")
    if w.device != x.device:
        raise ValueError(f"{name}: must be on {x.device}, is on {w.device}")
