"""Linear memories written by delta gradient descent with retention and momentum (NL eq. 88-93)."""

from hope_kernels.dgd_memory.chunk import ChunkWrite, write_chunk
from hope_kernels.dgd_memory.gates import Gates
from hope_kernels.dgd_memory.layout import Layout
from hope_kernels.dgd_memory.step import TokenWrite, write_token

__all__ = ["ChunkWrite", "Gates", "Layout", "TokenWrite", "write_chunk", "write_token"]
