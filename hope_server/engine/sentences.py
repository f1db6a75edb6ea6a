"""Which sentences of a journal tell something: a study puts these on cards.

Questions, fragments, and what a user asks the model to do tell nothing. What stands before a colon belongs to what
follows, where that is too short to be a sentence of its own. English where words count, pure Python.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from hope_server.engine.rehearsal import Piece

__all__ = ["WORD", "Sentence", "sentences"]

Sentence = tuple[str, Piece]
"""The text, and the piece or pieces in one that it was told in."""

MIN_WORDS = 3
SHORT_WORDS = 4
"""Words behind a colon, up to which they go with what stands before it: "Her new dish: plum cake"."""
_QUESTION_ENDS = ("?", "？", "؟")
# What a user asks of the model, as English has it: "Tell me something nice", "Please write a poem about rain".
_REQUEST = re.compile(
    r"\W*(?:(?:please|now|then|and|so|ok|okay|well|also|next|first|just|can you|could you)\W+)*"
    r"(?:(?:tell|give|show|teach|send|read|sing|ask|make|help|let|remind)\s+(?:me|us)\b(?!\s+that\b)"
    r"|(?:write|explain|describe|summari[sz]e|translate|suggest|recommend|rewrite|rephrase|draft|compare|continue)\b"
    r"|list\s+(?:the|all|some|every|each|your)\b)",
    re.IGNORECASE,
)
# A name or a number tells something, also inside a request and before a colon.
_TELLS = re.compile(r"\d|\s(?!I\b)[^\W\d_a-z]")
# Chinese and Japanese characters, Thai, Lao, Burmese, Khmer: scripts whose words no spaces part.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


def sentences(pieces: Sequence[Piece], decode: Callable[[Sequence[int]], str]) -> list[Sentence]:
    """Return what the pieces tell, in their order. `decode` is the tokenizer's."""
    out = []
    for piece in _with_openings(pieces, decode):
        text = _stripped(decode(piece.tokens))
        is_whole = piece.passes > 0 and "\ufffd" not in text and len(WORD.findall(text)) >= MIN_WORDS
        if is_whole and not _asks(text, piece.source) and not _announces(text):
            out.append((text, piece))
    return out


def _with_openings(pieces: Sequence[Piece], decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """The pieces, each that ends with a colon joined to the one behind it where that is short."""
    out: list[Piece] = []
    for piece in pieces:
        if out and _belong_together(out[-1], piece) and _stripped(decode(out[-1].tokens)).endswith(":"):
            text = _stripped(decode(piece.tokens))
            if len(WORD.findall(text)) <= SHORT_WORDS or text[:1].islower():
                out[-1] = replace(piece, tokens=(*out[-1].tokens, *piece.tokens))
                continue
        out.append(piece)
    return out


def _belong_together(one: Piece, other: Piece) -> bool:
    return replace(one, tokens=()) == replace(other, tokens=())


def _stripped(text: str) -> str:
    # A long text is cut between tokens, which may be inside a character.
    return text.strip("\ufffd \t\r\n")


def _asks(text: str, source: str) -> bool:
    """Whether a text is a question, or a user's request to the model."""
    if text.rstrip("\"'”’)").endswith(_QUESTION_ENDS):
        return True
    return source == "user" and _REQUEST.match(text) is not None and _TELLS.search(text) is None


def _announces(text: str) -> bool:
    """Whether a text only says that something follows: "Before I forget:"."""
    return text.endswith(":") and _TELLS.search(text) is None
