"""Token-by-token truth for `fast_linear`: one matrix-vector product a row and token.

Shapes: B rows, T tokens, I inputs, O outputs, r rank, S slots.
"""

import torch


def low_rank_delta(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply each row's own B A to its tokens. x [B, T, I], a [S, r, I], b [S, O, r]; returns [B, T, O].

    slots [B]: which A and B are a row's, negative for none; None: row i has its i-th.
    """
    out = x.new_zeros(x.shape[0], x.shape[1], b.shape[1])
    for row, slot in enumerate(range(len(x)) if slots is None else slots.tolist()):
        for token in range(x.shape[1]):
            if slot >= 0:
                out[row, token] = b[slot] @ (a[slot] @ x[row, token])
    return out


def dense_delta(x: torch.Tensor, w: torch.Tensor, slots: torch.Tensor | None = None) -> torch.Tensor:
    """Apply each row's own matrix to its tokens. x [B, T, I], w [S, O, I]; returns [B, T, O]. slots: as above."""
    out = x.new_zeros(x.shape[0], x.shape[1], w.shape[1])
    for row, slot in enumerate(range(len(x)) if slots is None else slots.tolist()):
        for token in range(x.shape[1]):
            if slot >= 0:
                out[row, token] = w[slot] @ x[row, token]
    return out


def fast_linear(
    x: torch.Tensor,
    base: torch.Tensor,
    dense: torch.Tensor | None = None,
    low_rank: tuple[torch.Tensor, torch.Tensor] | None = None,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Apply base [O, I] to every token of x [B, T, I] and add the row's own deltas; returns [B, T, O]."""
    out = x.new_zeros(x.shape[0], x.shape[1], base.shape[0])
    for row in range(len(x)):
        for token in range(x.shape[1]):
            out[row, token] = base @ x[row, token]
    if dense is not None:
        out = out + dense_delta(x, dense, slots)
    return out if low_rank is None else out + low_rank_delta(x, *low_rank, slots)
