"""The truth for `newton_schulz`: the polynomial on singular values, one number at a time, in float64.

Shapes: any leading dimensions, then matrices [m, n].
"""

from __future__ import annotations

import torch


def newton_schulz(
    matrix: torch.Tensor, num_steps: int = 5, coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
) -> torch.Tensor:
    """Keep the singular vectors of each matrix [..., m, n]; take every singular value through the steps.

    A step maps the singular value s to a s + b s^3 + c s^5, from s over the matrix's Frobenius norm. Returns float64.
    Source: NL eq. 42-44.
    """
    a, b, c = coefficients
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    out = torch.zeros_like(values)
    for index, group in enumerate(values.flatten(0, -2)):
        norm = max(sum(float(value) ** 2 for value in group) ** 0.5, 1e-7)
        for place, value in enumerate(group.tolist()):
            s = value / norm
            for _ in range(num_steps):
                s = a * s + b * s**3 + c * s**5
            out.view(-1, values.shape[-1])[index, place] = s
    return (left * out[..., None, :]) @ right
