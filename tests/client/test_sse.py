"""The event stream parser against the rules of the HTML standard."""

from __future__ import annotations

from itertools import pairwise

from hope_client.sse import Event, EventParser
from hypothesis import given
from hypothesis import strategies as st

STREAM = (
    "\ufeffdata: first\n\n"
    ": a comment\r\n"
    "data: two\r\ndata:  lines\r\n\r\n"
    "event: note\rid: 7\rretry: 10\rdata\rdata:é\u2028😀\r\r"
    "event: nothing\n\n"
    "data: no type left\n\n"
    "unknown: field\ndata: last\n\n"
    "data: never ended\n"
).encode()
EVENTS = [
    Event("first"),
    Event("two\n lines"),
    Event("\né\u2028😀", "note"),
    Event("no type left"),
    Event("last"),
]


def test_events_are_read_by_the_standard():
    """Comments, several data lines, all three line ends, a type, a byte order mark and an unended event."""
    assert EventParser().feed(STREAM) == EVENTS


@given(st.lists(st.integers(0, len(STREAM))))
def test_the_events_do_not_depend_on_how_the_bytes_arrive(cuts):
    """Any split, also inside a character or between CR and LF, gives the same events."""
    parser = EventParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in pairwise(edges)]
    assert [event for piece in pieces for event in parser.feed(piece)] == EVENTS


def test_an_event_is_given_as_soon_as_its_blank_line_came():
    """The parser does not wait for the next event, not even behind a lone CR."""
    parser = EventParser()
    assert parser.feed(b"data: x\n") == []
    assert parser.feed(b"\n") == [Event("x")]
    assert parser.feed(b"data: y\r\r") == [Event("y")]
    assert parser.feed(b"\ndata: z\n\n") == [Event("z")]
