"""The torch form of `fast_linear`: batched matrix products over rows, differentiable in every argument.

Shapes: B rows, T tokens, I inputs, O outputs, r rank, S slots. A weight with one row serves every row of x.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from hope_kernels.slots import gather


def fast_linear(
    x: torch.Tensor,
    base: torch.Tensor | None,
    dense: torch.Tensor | None,
    low_rank: tuple[torch.Tensor, torch.Tensor] | None,
    slots: torch.Tensor | None,
) -> torch.Tensor:
    """See `hope_kernels.fast_linear.fast_linear`, which checks the arguments; base [O, I] may be left out."""
    added = []
    if dense is not None:
        added.append(torch.matmul(x, _own(x, dense, slots)))
    if low_rank is not None:
        a, b = low_rank
        added.append(torch.matmul(torch.matmul(x, _own(x, a, slots)), _own(x, b, slots)))
    if slots is not None:
        # Zero weights make zeros of finite inputs alone.
        has_slot = (slots >= 0)[:, None, None]
        added = [torch.where(has_slot, part, part.new_zeros(())) for part in added]
    if base is not None:
        added.insert(0, functional.linear(x, base))
    out = added[0]
    for part in added[1:]:
        out = out + part
    return out


def _own(x: torch.Tensor, w: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
    """The rows' weights [B or 1, n, m] turned for the product with x, in its type."""
    picked = w if slots is None else gather(w, slots)
    return picked.to(x.dtype).transpose(1, 2)
