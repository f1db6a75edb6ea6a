"""The torch form of `pack_state`: a gather and a copy a tensor.

Shapes: S slots, B slots packed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hope_kernels.pack_state.layout import BLOCK, Layout


def pack_(buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: list[int], layout: Layout) -> bool:
    """Fill a buffer of zeros; returns whether its form can hold all weights. See `hope_kernels.pack_state.pack`."""
    index = torch.tensor(slots, dtype=torch.long, device=buffer.device)
    for tensor, start, size in zip(tensors, layout.starts, layout.sizes, strict=True):
        rows = tensor.detach().index_select(0, index).reshape(len(slots), size)
        if layout.form == "exact":
            rows = rows.view(torch.uint8) if size else rows.new_empty(len(slots), 0, dtype=torch.uint8)
            buffer[:, start : start + rows.shape[1]] = rows
        elif layout.form == "bf16":
            buffer[:, start : start + size] = rows.float().bfloat16()
        elif not _pack_blocks(buffer, rows.float(), start, layout.steps):
            return False
    return True


def unpack_(buffer: torch.Tensor, tensors: Sequence[torch.Tensor], slots: list[int], layout: Layout) -> None:
    """Write a buffer into slots. See `hope_kernels.pack_state.unpack_`."""
    index = torch.tensor(slots, dtype=torch.long, device=buffer.device)
    for tensor, start, size in zip(tensors, layout.starts, layout.sizes, strict=True):
        if layout.form == "exact":
            rows = buffer[:, start : start + size * tensor.element_size()].contiguous().view(tensor.dtype)
        elif layout.form == "bf16":
            rows = buffer[:, start : start + size]
        else:
            blocks, steps = _blocks(buffer, start, size, layout.steps)
            rows = (blocks.float() * _as_floats(steps)[:, :, None]).flatten(1)[:, :size]
        tensor.detach().index_copy_(0, index, rows.to(tensor.dtype).view(len(slots), *tensor.shape[1:]))


def _pack_blocks(buffer: torch.Tensor, rows: torch.Tensor, start: int, steps_start: int) -> bool:
    """Put rows [B, N] into blocks and steps; whether they were finite."""
    if not bool(rows.isfinite().all()):
        return False
    size = rows.shape[1]
    blocks, steps = _blocks(buffer, start, size, steps_start)
    padded = torch.nn.functional.pad(rows, (0, -size % BLOCK)).view(blocks.shape)
    step = padded.abs().amax(dim=2) / 127.0
    # A step of 0 is that of a block of zeros, or of weights too small for a float32 step: both are zeros.
    whole = torch.where(step[:, :, None] > 0, padded / step[:, :, None], torch.zeros_like(padded)).round()
    blocks.copy_(whole)
    steps.copy_(step[:, :, None].contiguous().view(torch.int8))
    return True


def _blocks(buffer: torch.Tensor, start: int, size: int, steps_start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of a tensor's blocks [B, n, 64] and of the bytes of their steps [B, n, 4]."""
    num_blocks, first = -(-size // BLOCK), steps_start + start // BLOCK * 4
    blocks = buffer[:, start : start + num_blocks * BLOCK].unflatten(1, (num_blocks, BLOCK))
    return blocks, buffer[:, first : first + 4 * num_blocks].unflatten(1, (num_blocks, 4))


def _as_floats(steps: torch.Tensor) -> torch.Tensor:
    return steps.contiguous().view(torch.float32)[:, :, 0]
