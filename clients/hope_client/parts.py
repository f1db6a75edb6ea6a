"""Cuts what is to be learned into parts that one request each can carry; the same text is always cut alike."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Teaching = str | os.PathLike[str] | Iterable[str]
"""What `learn` takes: text, the path of a UTF-8 file, or passages, which stay apart by a blank line."""

# A request is learned whole or not at all, so smaller parts lose less where one breaks off.
_PART_BYTES = 256 << 10
# Even where every character needs six in JSON this is below what a server takes by default.
_LARGEST_PART_BYTES = 2560 << 10
# A server knows the keys of a session's last 64 turns; with fewer parts all of them can still be answered again.
_MAX_PARTS = 48
_BREAKS = ("\n\n", "\n", ". ", " ")


def read_teaching(teaching: Teaching) -> str:
    """Return all the text there is to learn. Raises OSError, and ValueError for a file that is not UTF-8 text."""
    if isinstance(teaching, str):
        return teaching
    if isinstance(teaching, os.PathLike):
        return _read_file(Path(teaching))
    *passages, last = [*teaching] or [""]
    return "".join(text if text.endswith("\n") else f"{text}\n\n" for text in passages) + last


def _read_file(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path} is not UTF-8 text (byte {exc.start:,} is not); convert it first") from exc


def split(text: str, part_bytes: int = _PART_BYTES) -> list[str]:
    """Cut a text behind paragraphs, lines, sentences or words; what has no such place is cut between characters.

    Parts have up to `part_bytes` bytes of UTF-8, more only where there would be too many of them. None is blank
    unless the whole text is. Raises ValueError for a text that is too long.
    """
    size = _num_bytes(text)
    limit = max(part_bytes, -(-size * 5 // (4 * _MAX_PARTS)))
    if limit > _LARGEST_PART_BYTES:
        raise ValueError(
            f"the text has {size:,} bytes, one call takes about {_LARGEST_PART_BYTES * _MAX_PARTS * 4 // 5:,}; "
            "learn it in several calls, each with a key of its own"
        )
    parts: list[str] = []
    start = 0
    while start < len(text):
        stop = _end_of_part(text, start, limit)
        part = text[start:stop]
        if part.strip() or not parts:
            parts.append(part)
        start = stop
    if len(parts) > 1 and not parts[0].strip():
        del parts[0]
    return parts or [text]


def part_key(key: str, index: int, num_parts: int) -> str:
    """Return the idempotency key of one part, counted from 0; a text in one part has the key itself."""
    return key if num_parts == 1 else f"{key}/{index + 1}of{num_parts}"


def _end_of_part(text: str, start: int, limit: int) -> int:
    """Where the part that begins at `start` ends: the last break in its last fifth, or as far as `limit` bytes go."""
    # A character has up to four bytes, so the part has at least this many characters, or all the rest.
    stop = min(len(text), start + limit)
    while _num_bytes(text[start:stop]) > limit:
        excess = _num_bytes(text[start:stop]) - limit
        stop -= max(1, excess // 4)
    if stop == len(text):
        return stop
    earliest = stop - (stop - start) // 5
    for mark in _BREAKS:
        found = text.rfind(mark, earliest, stop)
        if found >= 0:
            return found + len(mark)
    return stop


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
