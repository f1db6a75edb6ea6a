"""Two-layer MLP memories whose layers are both written by delta gradient descent (NL eq. 88-90)."""

from hope_kernels.mlp_memory.chunk import MlpWrite, predict, write_chunk

__all__ = ["MlpWrite", "predict", "write_chunk"]
