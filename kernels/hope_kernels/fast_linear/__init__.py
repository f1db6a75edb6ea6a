"""Linear maps whose weights belong to a row (a session), not to the batch."""

from hope_kernels.fast_linear.public import dense_delta, fast_linear, low_rank_delta

__all__ = ["dense_delta", "fast_linear", "low_rank_delta"]
