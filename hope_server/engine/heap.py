"""Memory of the process: what lives long apart from what comes and goes, and what nobody needs given back."""

from __future__ import annotations

import ctypes
import gc
import mmap

import torch


def give_back() -> bool:
    """Free objects that only hold each other, then return freed heap pages; whether there were any.

    Turns that clients left, and errors, leave such rings with a session's state in them, and Python looks for old ones
    seldom. Takes tens of milliseconds; returns no pages where the C library can't.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))


def zeros_apart(like: torch.Tensor, size: int) -> torch.Tensor:
    """Zeros [size] of the type of `like`, on the CPU in a map of their own, which goes back with the last view of them.

    Among blocks that come and go, one that stays keeps a part of the heap from ever being given back.
    """
    if like.device.type != "cpu" or not size:
        return like.new_zeros(size)
    own = mmap.mmap(-1, size * like.element_size(), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(own, dtype=like.dtype)
