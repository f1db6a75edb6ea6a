"""Memory of the process: what lives long apart from what comes and goes, and what nobody needs given back."""

from __future__ import annotations

import ctypes
import gc
import mmap

import torch

LARGE = 1 << 20
"""Bytes from which on a block has pages of its own."""


def give_back() -> bool:
    """Free objects that only hold each other, then return freed heap pages; whether there were any.

    Turns that clients left, and errors, leave such rings with a session's state in them, and Python looks for old ones
    seldom. Takes tens of milliseconds; returns no pages where the C library can't.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))


def zeros_apart(size: int, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """Zeros [size]; a large block on the CPU has a map of its own, which goes back with the last view of it.

    Among blocks that come and go, one that stays keeps a part of the heap from ever being given back.
    """
    num_bytes = size * dtype.itemsize
    if num_bytes < LARGE or (device is not None and device.type != "cpu"):
        return torch.zeros(size, dtype=dtype, device=device)
    own = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(own, dtype=dtype)


def copy_apart(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A dense copy of a tensor, in `dtype` if one is given, in memory as that of `zeros_apart`."""
    kept = zeros_apart(tensor.numel(), dtype or tensor.dtype, tensor.device)
    return kept.view(tensor.shape).copy_(tensor.detach())
