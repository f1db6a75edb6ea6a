"""Looks at JSON while it arrives, before anything parses it: how deep it is nested and how many values it has.

Only bytes are counted, in C, piece by piece: nothing recurses, and a piece of 64 KiB takes less than a millisecond.
"""

from __future__ import annotations

from hope_server.errors import InvalidRequest

__all__ = ["MAX_DEPTH", "MAX_VALUES", "JsonShape"]

MAX_DEPTH = 64
MAX_VALUES = 50_000
"""Enough for 2,048 messages and 128 tools with their schemas; parsing as many empty objects takes 20 ms."""

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class JsonShape:
    """Counts what it is fed. Text that is no JSON is counted somehow; the parser refuses it where it goes wrong."""

    def __init__(self) -> None:
        self._is_in_string = False
        self._held = b""
        self._depth = 0
        self._num_values = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body. Raises InvalidRequest once there is too much."""
        if self._held:
            piece = self._held + piece
        # A last backslash is held back: what it escapes comes with the next piece.
        num_backslashes = len(piece) - len(piece.rstrip(b"\\"))
        self._held = b"\\" if num_backslashes % 2 else b""
        if self._held:
            piece = piece[:-1]
        # In this order, so that the quote after an escaped backslash still ends its string.
        bare = piece.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _ALL_BUT_STRUCTURE)
        parts = bare.split(b'"')
        outside = b"".join(parts[int(self._is_in_string) :: 2])
        self._is_in_string ^= len(parts) % 2 == 0
        self._count(outside)

    def _count(self, structure: bytes) -> None:
        # A closing bracket has an opening one, so what lies beyond twice the most values has too many anyway.
        for bracket in structure.translate(None, b",")[: 2 * MAX_VALUES]:
            self._depth += _STEP[bracket]
            if self._depth > MAX_DEPTH:
                raise InvalidRequest(f"the body is nested too deeply, more than {MAX_DEPTH} levels; send a flatter one")
        self._num_values += structure.count(b",") + structure.count(b"[") + structure.count(b"{")
        if self._num_values > MAX_VALUES:
            raise InvalidRequest(f"the body has more than {MAX_VALUES:,} values, the limit; send fewer at once")
