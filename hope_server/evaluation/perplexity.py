"""Perplexity against position: how much better a text is predicted the more of it has been read.

A token is a byte. Shapes: B rows, T bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from hope_server.training.batch import Batch

__all__ = ["DEFAULT_TEXT", "TextTask", "load_text", "position_groups"]

DEFAULT_TEXT = "python"
"""Names the reference of the Python language that comes with every interpreter: 0.46 MB of English, PSF licence."""

_HELD_OUT = 0.1
_FIRST_GROUP = 16


@lru_cache(maxsize=4)
def load_text(source: str) -> bytes:
    """Return a text: that of `DEFAULT_TEXT`, or of a UTF-8 file. Raises ValueError when it cannot be used."""
    if source == DEFAULT_TEXT:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)).encode()
    try:
        data = Path(source).read_bytes()
        data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"the text {source!r} cannot be read as a UTF-8 file; name another with --text") from exc
    return data


def position_groups(length: int) -> list[tuple[int, int]]:
    """Return ranges of positions that cover 0 .. length-1, the first of 16, each other as long as all before it."""
    groups, start = [], 0
    while start < length:
        stop = min(length, max(_FIRST_GROUP, 2 * start))
        groups.append((start, stop))
        start = stop
    return groups


@dataclass(frozen=True, slots=True)
class TextTask:
    """Windows of a text, byte by byte; every next byte is the target.

    source: as `load_text`. is_held_out: draw from the last tenth, which training never sees, and not from the rest.
    """

    source: str = DEFAULT_TEXT
    is_held_out: bool = False

    @property
    def vocab_size(self) -> int:
        """All bytes."""
        return 256

    @property
    def digest(self) -> str:
        """The first letters of the text's SHA-256."""
        return hashlib.sha256(load_text(self.source)).hexdigest()[:16]

    def __repr__(self) -> str:
        """Name the text by its content, so that finished work is found again only for the same text."""
        return f"TextTask(sha256={self.digest}, is_held_out={self.is_held_out})"

    def sample(self, num_rows: int, length: int, generator: torch.Generator) -> Batch:
        """Draw windows of `length` + 1 bytes. Raises ValueError when the text is shorter."""
        text = load_text(self.source)
        cut = len(text) - int(_HELD_OUT * len(text))
        part = text[cut:] if self.is_held_out else text[:cut]
        room = len(part) - length
        if room < 1:
            raise ValueError(f"the text has {len(part)} bytes for windows of {length}; choose shorter --lengths")
        starts = torch.randint(room, (num_rows,), generator=generator).tolist()
        rows = torch.stack([torch.tensor(list(part[start : start + length + 1])) for start in starts])
        return Batch(rows[:, :-1], rows[:, 1:].clone(), torch.ones(num_rows, length))

    def sample_groups(
        self, num_rows: int, length: int, generator: torch.Generator
    ) -> tuple[Batch, dict[str, torch.Tensor]]:
        """As `sample`, with groups of positions, each as long as all before it."""
        groups = {}
        for start, stop in position_groups(length):
            mask = torch.zeros(num_rows, length, dtype=torch.bool)
            mask[:, start:stop] = True
            groups[f"{start + 1}-{stop}"] = mask
        return self.sample(num_rows, length, generator), groups
