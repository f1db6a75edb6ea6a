"""How text that is rehearsed is spelt: as the model would say it, as a reply, behind a question or behind none."""

from __future__ import annotations

from hope_server.engine.rehearsal import Frame, Tokens
from hope_server.engine.tokenizer import Span, Tokenizer
from hope_server.engine.turn import Message


class Speller:
    """Knows the frame of a tokenizer's chat template, and respells passages for the beginning of a line."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        asked = [Message("user", "?")]
        questions = [tokenizer.render_chat(asked, continuing=continuing) for continuing in (False, True)]
        heads = [next(i for i, span in enumerate(spans) if span.is_content) for spans in questions]
        self.frame = Frame(
            questions=tuple(_join(spans[:head]) for spans, head in zip(questions, heads, strict=True)),
            reply=_join(questions[0][heads[0] + 1 :]),
            opening=_join(tokenizer.render_chat([], continuing=True)),
            closing=tuple(tokenizer.encode("\n")),
            ending=tokenizer.close_assistant()[:1] or tuple(tokenizer.encode("\n")),
        )

    @property
    def longest_head(self) -> int:
        """Most tokens that stand before a chain, its cue not counted."""
        return max(map(len, self.frame.questions)) + len(self.frame.reply)

    def spell(self, passage: Tokens) -> Tokens:
        """The passage without the space that set it apart from the sentence before; as it is if it is no clean text."""
        text = self._tokenizer.decode(passage)
        if not text[:1].isspace() or "\ufffd" in text or not text.strip():
            return passage
        return tuple(self._tokenizer.encode(text.lstrip()))


def _join(spans: list[Span]) -> Tokens:
    return tuple(token for span in spans for token in span.ids)
