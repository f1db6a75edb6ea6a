"""Linear maps whose weights belong to a row (a session), not to the batch."""

from hope_kernels.fast_linear.batched import dense_delta, low_rank_delta

__all__ = ["dense_delta", "low_rank_delta"]
