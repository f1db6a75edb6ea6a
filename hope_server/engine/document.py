"""Long texts as tokens: a piece at a time, so that millions of them take little more memory than their ids."""

from __future__ import annotations

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from hope_server.engine.run import FeedToken

__all__ = ["cut", "encode_long", "taught"]

LONGEST_PIECE = 65_536
"""Characters that are encoded at once: what the tokenizer makes of them meanwhile is some hundred bytes each."""
_BLANKS = re.compile(r"\s+")


def cut(text: str) -> Iterator[str]:
    """Yield the text in pieces, each but the first beginning with white space: there tokenizers part words anyway.

    Where a piece would have no white space in it, it ends wherever it is full.
    """
    start = 0
    while len(text) - start > LONGEST_PIECE:
        end = start + LONGEST_PIECE
        # A run of blanks stays whole, as tokens can be made of several; its beginning is what is looked for.
        gaps = [gap.start() for gap in _BLANKS.finditer(text, end - LONGEST_PIECE // 8, end)]
        stop = next((gap for gap in reversed(gaps) if not text[gap - 1].isspace()), end)
        yield text[start:stop]
        start = stop
    yield text[start:]


def encode_long(text: str, encode: Callable[[str], Sequence[int]]) -> Sequence[int]:
    """Return a text's ids, 4 bytes each. `encode` raises InvalidRequest when the text is not valid Unicode."""
    ids = array("I")
    for piece in cut(text):
        ids.extend(encode(piece))
    return ids


def taught(ids: Sequence[int], closing: Sequence[int], passes: int) -> deque[FeedToken]:
    """Return what a learn turn reads: the ids, each rehearsed so often, and `closing`, which does not teach.

    Equal tokens are one object.
    """
    made = {token: FeedToken(token, "text", passes) for token in set(ids)}
    feed = deque(map(made.__getitem__, ids))
    feed.extend(FeedToken(token) for token in closing)
    return feed
