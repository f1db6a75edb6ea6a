"""Hands memory that nobody needs any more back to the operating system."""

from __future__ import annotations

import ctypes
import gc


def give_back() -> bool:
    """Free objects that only hold each other, then return freed heap pages; whether there were any.

    Turns that clients left, and errors, leave such rings with a session's state in them, and Python looks for old ones
    seldom. Takes tens of milliseconds; returns no pages where the C library can't.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim is not None and trim(0))
