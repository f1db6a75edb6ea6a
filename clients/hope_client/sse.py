"""Reads server-sent events out of bytes that arrive in any pieces, as the HTML standard's section 9.2 says."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event: its type (`message` unless named) and its data, several data lines joined by newlines."""

    data: str
    type: str = "message"


class EventParser:
    """Turns bytes into events; feed it pieces in order. An event that is not ended by a blank line is never given."""

    def __init__(self) -> None:
        # utf-8-sig drops a leading byte order mark; invalid bytes must not end the stream.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._line: list[str] = []
        self._after_return = False
        self._data: list[str] = []
        self._type = ""

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completed."""
        events: list[Event] = []
        text = self._decoder.decode(piece)
        if self._after_return and text:
            # The second half of a CRLF whose first half ended the piece before.
            text = text.removeprefix("\n")
            self._after_return = False
        self._after_return = text.endswith("\r")
        # Only CR and LF end a line; str.splitlines would also split at U+2028 and its like inside the data.
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        for line in lines:
            self._line.append(line)
            self._take_line("".join(self._line), events)
            self._line.clear()
        if rest:
            self._line.append(rest)
        return events

    def _take_line(self, line: str, events: list[Event]) -> None:
        if not line:
            if self._data:
                events.append(Event("\n".join(self._data), self._type or "message"))
            self._data, self._type = [], ""
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        # A line that starts with a colon is a comment and has an empty name; id and retry mean nothing here.
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
