"""Newton-Schulz orthogonalisation: checks the arguments and runs the form that fits their device."""

from __future__ import annotations

import torch

from hope_kernels.dispatch import uses_triton
from hope_kernels.launch import require
from hope_kernels.newton_schulz import bmm
from hope_kernels.slots import check_slots

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients that lift small singular values fastest; five steps bring all to between about 0.7 and 1.2."""
CUBIC = (1.5, -0.5, 0.0)
"""Coefficients of one step of gradient descent on ||O^T O - I||^2, which converges to the orthogonal factor."""
MAX_SIDE = 128
"""The longest smaller side of a matrix that the Triton form takes."""

_IN_TRITON = (torch.float32, torch.float16, torch.bfloat16)


def newton_schulz(
    matrix: torch.Tensor,
    num_steps: int = 5,
    coefficients: tuple[float, float, float] = QUINTIC,
    slots: torch.Tensor | None = None,
) -> torch.Tensor:
    """Bring every singular value of each matrix [..., m, n] to about 1, keeping its singular vectors.

    Zeros stay zero. num_steps: 0 or more; coefficients: of s, s^3 and s^5 in a step on a singular value s.
    slots [B], int32 or int64: matrix is then a pool [S, m, n], and row i takes the matrix in slots[i], zeros where
    that is negative; None takes every matrix as it stands.
    Returns a new tensor [..., m, n], or [B, m, n] with slots, of the same dtype; differentiable.
    Raises ValueError for arguments that do not fit. Source: NL eq. 42-44.
    """
    require(matrix.dim() >= 2, "matrix", f"must be [..., m, n], got {tuple(matrix.shape)}")
    require(matrix.is_floating_point(), "matrix", f"must be of a floating dtype, got {matrix.dtype}")
    require(num_steps >= 0, "num_steps", f"must be 0 or more, got {num_steps}")
    require(len(coefficients) == 3, "coefficients", f"must be three numbers, got {len(coefficients)}")
    if slots is not None:
        require(matrix.dim() == 3, "matrix", f"must be a pool [S, m, n] with slots, got {tuple(matrix.shape)}")
        check_slots(slots, matrix.shape[0], matrix.device)
    fits = min(matrix.shape[-2:]) <= MAX_SIDE and matrix.dtype in _IN_TRITON and num_steps > 0
    if fits and uses_triton(matrix, slots):
        from hope_kernels.newton_schulz import gpu

        return gpu.newton_schulz(matrix, num_steps, coefficients, slots)
    return bmm.newton_schulz(matrix, num_steps, coefficients, slots)
