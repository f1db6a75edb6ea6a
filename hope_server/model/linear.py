"""Products with slow weights, which may be rounded: factors in the weights' dtype, everything else in the network's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hope_kernels.products import product, product_in_rows

__all__ = ["linear", "linear_in_columns"]

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [..., n] times weight [m, n] transposed: [..., m] in the dtype of x, laid out by rows.

    Where the weight is rounded, so is x for this product. Under autocast (`half_products`) torch does the same, but
    leaves the product as it is.
    """
    return _multiplied(product_in_rows, x, weight)


def linear_in_columns(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The same, laid out by columns where that is faster: for elementwise work and products, which keep the layout."""
    return _multiplied(product, x, weight)


def _multiplied(
    by: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    # As one matrix: of rows that do not lie one behind the other torch makes as many products, each with the weight.
    rows = x.reshape(-1, x.shape[-1])
    found = by(rows.to(weight.dtype), weight).to(x.dtype) if _is_rounded(x, weight) else by(rows, weight)
    return found.view(*x.shape[:-1], len(weight))


def _is_rounded(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether x has to be rounded for a product with a weight, and nobody else does it."""
    return weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type)
