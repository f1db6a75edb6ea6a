"""Products with slow weights, which may be rounded: factors in the weights' dtype, everything else in the network's."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["is_rounded", "linear"]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [..., n] times weight [m, n] transposed: [..., m] in the dtype of x.

    Where the weight is rounded, so is x for this product. Under autocast (`half_products`) torch does the same, but
    leaves the product as it is.
    """
    # As one matrix: of rows that do not lie one behind the other torch makes as many products, each with the weight.
    rows = x.reshape(-1, x.shape[-1])
    if is_rounded(x, weight):
        found = functional.linear(rows.to(weight.dtype), weight).to(x.dtype)
    else:
        found = functional.linear(rows, weight)
    return found.view(*x.shape[:-1], len(weight))


def is_rounded(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x has to be rounded for a product with a weight, and nobody else does it."""
    return weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)
