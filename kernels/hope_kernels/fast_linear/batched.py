"""The torch form of `fast_linear`: one batched matrix product over rows, differentiable in every argument.

Shapes: B rows, T tokens, I inputs, O outputs, r rank. A weight with one row serves every row of x.
"""

import torch


def _check(x: torch.Tensor, w: torch.Tensor, name: str) -> None:
    if x.dim() != 3 or w.dim() != 3 or w.shape[0] not in (1, x.shape[0]) or w.shape[2] != x.shape[2]:
        raise ValueError(f"{name}: expected [B or 1, *, {x.shape[-1]}] for x {tuple(x.shape)}, got {tuple(w.shape)}")


def low_rank_delta(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Apply each row's own B A to its tokens.

    x [B, T, I], a [B, r, I], b [B, O, r]; returns [B, T, O]. Raises ValueError on shapes that do not fit.
    """
    _check(x, a, "a")
    if b.dim() != 3 or b.shape[0] != a.shape[0] or b.shape[2] != a.shape[1]:
        raise ValueError(f"b: expected [{a.shape[0]}, O, {a.shape[1]}], got {tuple(b.shape)}")
    return torch.matmul(torch.matmul(x, a.transpose(1, 2)), b.transpose(1, 2))


def dense_delta(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Apply each row's own matrix to its tokens. x [B, T, I], w [B, O, I]; returns [B, T, O]. Raises ValueError."""
    _check(x, w, "w")
    return torch.matmul(x, w.transpose(1, 2))
