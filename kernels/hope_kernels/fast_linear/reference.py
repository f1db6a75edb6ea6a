"""Token-by-token truth for `fast_linear`: one matrix-vector product a row and token.

Shapes: B rows, T tokens, I inputs, O outputs, r rank.
"""

import torch


def low_rank_delta(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Apply each row's own B A to its tokens. x [B, T, I], a [B, r, I], b [B, O, r]; returns [B, T, O]."""
    out = x.new_zeros(x.shape[0], x.shape[1], b.shape[1])
    for row in range(x.shape[0]):
        for token in range(x.shape[1]):
            out[row, token] = b[row] @ (a[row] @ x[row, token])
    return out


def dense_delta(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Apply each row's own matrix to its tokens. x [B, T, I], w [B, O, I]; returns [B, T, O]."""
    out = x.new_zeros(x.shape[0], x.shape[1], w.shape[1])
    for row in range(x.shape[0]):
        for token in range(x.shape[1]):
            out[row, token] = w[row] @ x[row, token]
    return out
