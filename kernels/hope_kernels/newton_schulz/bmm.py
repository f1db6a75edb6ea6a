"""The torch form of `newton_schulz`: batched matrix products, differentiable, for matrices of any size.

Shapes: B matrices [m, n]; any leading dimensions.
"""

from __future__ import annotations

import torch

from hope_kernels.slots import gather


def newton_schulz(
    matrix: torch.Tensor,
    num_steps: int,
    coefficients: tuple[float, float, float],
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `hope_kernels.newton_schulz.newton_schulz`, which checks the arguments."""
    a, b, c = coefficients
    if slots is not None:
        matrix = gather(matrix, slots)
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x: torch.Tensor = matrix.mT if is_tall else matrix
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        # a x stays outside of the product, whose factors may be rounded: small singular values live on it.
        x = torch.add((b * gram + c * (gram @ gram)) @ x, x, alpha=a)
    return x.mT if is_tall else x
