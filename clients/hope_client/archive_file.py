"""Writes an exported session to a file of its own."""

from __future__ import annotations

import os


def write_new(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to a new file that only its owner can read. Raises OSError, FileExistsError where it exists."""
    # Whoever reads the file knows what the session knows.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
