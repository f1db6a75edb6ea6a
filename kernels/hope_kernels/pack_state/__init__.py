"""A slot's tensors gathered into one contiguous buffer, exactly or compressed, and back."""

from hope_kernels.pack_state.layout import Form
from hope_kernels.pack_state.public import pack, unpack_

__all__ = ["Form", "pack", "unpack_"]
