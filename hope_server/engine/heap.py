"""Hands memory that the C library keeps for later back to the operating system."""

from __future__ import annotations

import ctypes


def give_back() -> bool:
    """Return freed heap pages; whether there were any. Takes milliseconds; does nothing where the C library can't."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))
