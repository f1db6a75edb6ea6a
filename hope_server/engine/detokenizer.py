"""Turns a stream of token ids into text that is final: whole characters, cut before the first stop string."""

from __future__ import annotations

import codecs
from typing import Protocol

from hope_server.engine.tokenizer import Tokenizer

# A character has at most 4 bytes, so longer runs of unfinished text are not one character waiting for its end.
_MAX_HELD_TOKENS = 16
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class StreamingDetokenizer:
    """Text of a reply as its ids arrive, in amortised constant time per id.

    stopped: True once a stop string was completed; text from its first character on is never given out.
    num_decoded: characters that the ids so far are for certain; num_given: how many of these were given out.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        """Start an empty reply; empty strings in `stop` are ignored."""
        is_byte_level = tokenizer.token_bytes(0) is not None
        self._decoder: _Decoder = _ByteDecoder(tokenizer) if is_byte_level else _WindowDecoder(tokenizer)
        self._matchers = [_StopMatcher(text) for text in stop if text]
        self._held = ""
        self.stopped = False
        self.num_decoded = 0
        self.num_given = 0

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that became final, often empty; always empty once stopped."""
        if self.stopped:
            return ""
        text = self._filter(self._decoder.push(token_id))
        self.num_given += len(text)
        return text

    def flush(self) -> str:
        """End the reply and return the text held back, without the bytes of an unfinished character."""
        if self.stopped:
            return ""
        rest = self._filter(self._decoder.flush()) + self._held
        self._held = ""
        self.num_given += len(rest)
        return rest

    def _filter(self, text: str) -> str:
        self.num_decoded += len(text)
        if not self._matchers:
            return text
        for index, char in enumerate(text):
            completed = [matcher.length for matcher in self._matchers if matcher.push(char)]
            if completed:
                seen = self._held + text[: index + 1]
                self.stopped, self._held = True, ""
                return seen[: len(seen) - max(completed)]
        seen = self._held + text
        cut = len(seen) - max(matcher.matched for matcher in self._matchers)
        self._held = seen[cut:]
        return seen[:cut]


class _Decoder(Protocol):
    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class _ByteDecoder:
    """Exact for byte-level tokenizers, whatever the ids: bytes go through an incremental UTF-8 decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(token_id) or b"")

    def flush(self) -> str:
        self._utf8.reset()
        return ""


class _WindowDecoder:
    """For any tokenizer: decodes a short window with and without the new ids, so that what joins them is right."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._num_read = 0

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        fresh = self._fresh()
        is_unfinished = not fresh or fresh.endswith(_UNFINISHED)
        if is_unfinished and len(self._ids) - self._num_read < _MAX_HELD_TOKENS:
            return ""
        # The ids just read stay as the context of the next ones; those before them have done their duty.
        self._ids = self._ids[self._num_read :]
        self._num_read = len(self._ids)
        return fresh

    def flush(self) -> str:
        fresh = self._fresh().rstrip(_UNFINISHED)
        self._ids, self._num_read = [], 0
        return fresh

    def _fresh(self) -> str:
        read = self._tokenizer.decode(self._ids[: self._num_read])
        return self._tokenizer.decode(self._ids)[len(read) :]


class _StopMatcher:
    """Follows one stop string through the text (Knuth, Morris and Pratt). `matched`: characters that match so far."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fallback = [0] * (len(text) + 1)
        self.length = len(text)
        self.matched = 0
        border = 0
        for index in range(1, len(text)):
            while border and text[index] != text[border]:
                border = self._fallback[border]
            border += text[index] == text[border]
            self._fallback[index + 1] = border

    def push(self, char: str) -> bool:
        """Take the next character and return whether it completes the stop string."""
        while self.matched and char != self._text[self.matched]:
            self.matched = self._fallback[self.matched]
        self.matched += char == self._text[self.matched]
        return self.matched == self.length
