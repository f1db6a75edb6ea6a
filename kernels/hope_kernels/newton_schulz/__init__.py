"""Newton-Schulz orthogonalisation of matrices, many at a time."""

from hope_kernels.newton_schulz.public import CUBIC, MAX_SIDE, QUINTIC, newton_schulz

__all__ = ["CUBIC", "MAX_SIDE", "QUINTIC", "newton_schulz"]
