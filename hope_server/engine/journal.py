"""The session's own text, cut into sentences as its tokens arrive; consolidation replays from it.

Cuts depend on the token stream alone, never on how it was split into requests. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hope_server.engine.rehearsal import Piece

_FULL_STOPS = ("。", "！", "？", "؟", "।")
_ENDS = (".", "!", "?", ":", ";", *_FULL_STOPS)
_TAIL = 8
_CLOSERS = "\"')]}*_”’»"


@dataclass(slots=True)
class Journal:
    """Pieces in the order they were read, the sentence that is still open, and how far consolidation has come.

    max_piece_tokens: a sentence is cut at this length; max_tokens: the oldest pieces beyond it are dropped.
    """

    pieces: list[Piece] = field(default_factory=list)
    num_consolidated: int = 0
    open_tokens: list[int] = field(default_factory=list)
    open_text: str = ""
    open_passes: int = 0
    open_source: str = "user"
    paragraph: int = 0
    max_piece_tokens: int = 48
    max_tokens: int = 16_384
    open_levels: tuple[str, ...] | None = None

    def copy(self) -> Journal:
        """An independent copy; the pieces themselves are immutable."""
        return replace(self, pieces=list(self.pieces), open_tokens=list(self.open_tokens))

    def read(
        self, token: int, text: str, passes: int, source: str | None, levels: tuple[str, ...] | None = None
    ) -> None:
        """Take in one token and its text. source None is a token that does not teach: it ends the paragraph.

        levels: those that it may teach (None: all); another choice ends the paragraph too.
        """
        if source is None:
            self.end_paragraph()
            return
        if self.open_tokens and (source, levels) != (self.open_source, self.open_levels):
            self.end_paragraph()
        ended = self.open_text.rstrip().rstrip(_CLOSERS).endswith(_ENDS)
        is_break = "\n" in text and not text.strip()
        if is_break and (ended or text.count("\n") > 1 or not self.open_tokens):
            self.end_paragraph()
            return
        if ended and text[:1].isspace():
            self.close()
        self.open_tokens.append(token)
        self.open_text = _tail(self.open_text + text)
        self.open_passes, self.open_source, self.open_levels = passes, source, levels
        # Behind the full stop of some scripts there is no space.
        if len(self.open_tokens) >= self.max_piece_tokens or self.open_text.endswith(_FULL_STOPS):
            self.close()
        elif text.endswith("\n") and text.strip().endswith(_ENDS):
            self.end_paragraph()

    def close(self) -> None:
        """End the open sentence."""
        if self.open_tokens and self.open_text.strip():
            tokens = tuple(self.open_tokens)
            self.pieces.append(Piece(tokens, self.open_passes, self.paragraph, self.open_source, self.open_levels))
        self.open_tokens, self.open_text = [], ""

    def end_paragraph(self) -> None:
        """End the open sentence and its paragraph."""
        self.close()
        if self.pieces and self.pieces[-1].paragraph == self.paragraph:
            self.paragraph += 1

    def unconsolidated(self) -> list[Piece]:
        """Closed pieces that no consolidation has taken yet."""
        return self.pieces[self.num_consolidated :]

    def trim(self, *, keeps_waiting: bool = False) -> None:
        """Drop the oldest pieces beyond `max_tokens`; keeps_waiting: none that no consolidation has taken yet."""
        excess = sum(len(piece.tokens) for piece in self.pieces) - self.max_tokens
        most = self.num_consolidated if keeps_waiting else len(self.pieces)
        dropped = 0
        while excess > 0 and dropped < most:
            excess -= len(self.pieces[dropped].tokens)
            dropped += 1
        del self.pieces[:dropped]
        self.num_consolidated = max(0, self.num_consolidated - dropped)


def _tail(text: str) -> str:
    """The end of a text: its last characters, and the first of the blanks behind them."""
    words = text.rstrip()
    return words[-_TAIL:] + text[len(words) :][:_TAIL]
