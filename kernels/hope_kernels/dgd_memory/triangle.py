"""Unit lower triangular systems: solved at once, or by an exact inverse in blocks where many columns share a triangle.

Shapes: C tokens of the chunk, V columns; any leading dimensions.
"""

from __future__ import annotations

from typing import Any

import torch

BLOCK = 16
"""Blocks on the diagonal up to this size are inverted by forward substitution; products do the rest."""
MANY_COLUMNS = 128
"""From this many columns a triangle the inverse pays: a product is several times as fast as torch's substitution."""


def solve(coupling: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve (I + L) x = right, where L is the part of coupling [..., C, C] below its diagonal; the rest is not read.

    right [..., C, V]; leading dimensions of 1 in coupling serve many of right's. float32 or float64; returns x
    [..., C, V]. Differentiable, any number of times.
    """
    if right.shape[-2] == 1:
        return right
    num_columns = right.numel() // coupling.shape[:-1].numel()
    if num_columns >= MANY_COLUMNS:
        return unit_lower_inverse(coupling) @ right
    return torch.linalg.solve_triangular(coupling, right, upper=False, unitriangular=True)


def unit_lower_inverse(coupling: torch.Tensor) -> torch.Tensor:
    """Invert I + L for coupling [..., C, C] as in `solve`. Returns [..., C, C]. Differentiable, any number of times."""
    if not torch.is_grad_enabled():
        return _inverted(coupling)
    inverse: torch.Tensor = _UnitLowerInverse.apply(coupling)
    return inverse


class _UnitLowerInverse(torch.autograd.Function):
    """The inverse T with its own gradient, -(T' G T') below the diagonal: two products instead of all steps again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(coupling: torch.Tensor) -> torch.Tensor:
        return _inverted(coupling)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (inverse,) = ctx.saved_tensors
        return -(inverse.mT @ grad @ inverse.mT).tril(-1)


def _inverted(coupling: torch.Tensor) -> torch.Tensor:
    size = coupling.shape[-1]
    block = min(BLOCK, size)
    if short := -size % block:
        # Tokens that couple to nothing: the inverse of what was there stays what it is.
        coupling = torch.nn.functional.pad(coupling, (0, short, 0, short))
    inverse = coupling.new_zeros(coupling.shape)
    eye = torch.eye(block, dtype=coupling.dtype, device=coupling.device)
    blocks = torch.linalg.solve_triangular(_diagonal(coupling, block), eye, upper=False, unitriangular=True)
    _diagonal(inverse, block).copy_(blocks)
    for start in range(block, size, block):
        rows = slice(start, start + block)
        reached = coupling[..., rows, :start] @ inverse[..., :start, :start]
        inverse[..., rows, :start] = -(inverse[..., rows, rows] @ reached)
    return inverse[..., :size, :size]


def _diagonal(square: torch.Tensor, block: int) -> torch.Tensor:
    """A view of the blocks on the diagonal of [..., C, C]: [..., C / block, block, block]."""
    num_blocks = square.shape[-1] // block
    split = square.unflatten(-1, (num_blocks, block)).unflatten(-3, (num_blocks, block))
    return split.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
