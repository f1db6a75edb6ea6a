"""What a commit may wait for: `commit`, `fsync`, or `replicated:n`."""

from __future__ import annotations

import re

_REPLICATED = re.compile(r"replicated:([1-9][0-9]?)")


def num_replicas(durability: str) -> int:
    """Return how many replicas a durability asks for, 1 to 99; 0 for `commit` and `fsync`. Raises ValueError."""
    if durability in ("commit", "fsync"):
        return 0
    match = _REPLICATED.fullmatch(durability)
    if match is None:
        raise ValueError(f"durability {durability!r} is none of commit, fsync and replicated:n with n from 1 to 99")
    return int(match[1])
