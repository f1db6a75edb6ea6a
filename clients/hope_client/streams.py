"""Reads streamed answers out of bytes that arrive in any pieces, without doing any I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hope_client.answers import decode, error_of, receipt_of, usage_of
from hope_client.errors import StreamInterrupted, UnexpectedAnswer
from hope_client.objects import LearnProgress, LearnResult, Receipt, Reply, ToolCall, Usage, from_json
from hope_client.sse import EventParser

_DONE = "[DONE]"


class StreamReader:
    """Turns the bytes of an event stream into JSON objects until [DONE]; what comes behind it is ignored."""

    def __init__(self, request_id: str | None) -> None:
        self.is_done = False
        self.request_id = request_id
        self._parser = EventParser()

    def payloads(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects that `piece` completed. Raises the HopeError that an error event carries."""
        headers = {} if self.request_id is None else {"x-request-id": self.request_id}
        for event in self._parser.feed(piece):
            if self.is_done:
                return
            if event.data == _DONE:
                self.is_done = True
                return
            payload = decode(event.data.encode(), 200, headers)
            if not isinstance(payload, dict):
                raise UnexpectedAnswer("an event of the stream is not an object", request_id=self.request_id)
            if isinstance(payload.get("error"), dict):
                raise error_of(payload["error"], None, headers)
            yield payload

    def said(self) -> str:
        """Return the text that has come so far, none where a stream has no text."""
        return ""

    def check_done(self) -> None:
        """Raise StreamInterrupted where the stream ended without [DONE]."""
        if not self.is_done:
            raise self.interrupted("the server closed it")

    def interrupted(self, why: str) -> StreamInterrupted:
        """Return the error of a stream that ended without [DONE]."""
        return StreamInterrupted(
            f"the stream broke off before its end ({why}); the session's version says whether the turn was kept",
            text=self.said(),
            request_id=self.request_id,
        )


class ChatStreamReader(StreamReader):
    """Reads a streamed chat completion with one choice."""

    def __init__(self, request_id: str | None = None) -> None:
        super().__init__(request_id)
        self._text: list[str] = []
        self._receipt: Receipt | None = None
        self._usage: Usage | None = None
        self._finish_reason: str | None = None
        self._calls: dict[int, ToolCall] = {}

    def feed(self, piece: bytes) -> Iterator[str]:
        """Yield the pieces of text that `piece` completed. Raises HopeError as the stream says."""
        for payload in self.payloads(piece):
            self._receipt = receipt_of(payload) or self._receipt
            self._usage = usage_of(payload) or self._usage
            for choice in payload.get("choices") or ():
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                delta = choice.get("delta") or {}
                for part in delta.get("tool_calls") or ():
                    self._add_call(part)
                text = delta.get("content")
                if text:
                    self._text.append(text)
                    yield text

    def said(self) -> str:
        """Return the text that has come so far."""
        return "".join(self._text)

    def reply(self) -> Reply:
        """Return what has come so far; complete once `is_done`."""
        calls = tuple(self._calls[index] for index in sorted(self._calls))
        return Reply(self.said(), self._receipt, self._usage, self._finish_reason, calls)

    def _add_call(self, part: dict[str, Any]) -> None:
        """Take a piece of a tool call: its first has id and name, the arguments come in any number of pieces."""
        index, function = int(part.get("index", 0)), part.get("function") or {}
        known = self._calls.get(index, ToolCall("", "", ""))
        self._calls[index] = ToolCall(
            known.id or str(part.get("id") or ""),
            known.name or str(function.get("name") or ""),
            known.arguments + str(function.get("arguments") or ""),
        )


class LearnStreamReader(StreamReader):
    """Reads a streamed learn or consolidate call; `on_progress` is told how far it is."""

    def __init__(
        self, request_id: str | None = None, on_progress: Callable[[LearnProgress], None] | None = None
    ) -> None:
        super().__init__(request_id)
        self._result: LearnResult | None = None
        self._on_progress = on_progress

    def feed(self, piece: bytes) -> None:
        """Take what `piece` completed. Raises HopeError as the stream says."""
        for payload in self.payloads(piece):
            if str(payload.get("object", "")).endswith(".progress"):
                if self._on_progress is not None:
                    self._on_progress(from_json(LearnProgress, payload))
            else:
                receipt = receipt_of(payload)
                self._result = LearnResult(receipt, usage_of(payload), () if receipt is None else (receipt,))

    def result(self) -> LearnResult:
        """Return the outcome. Raises StreamInterrupted when the stream had none."""
        if not self.is_done or self._result is None:
            raise self.interrupted("no result came")
        return self._result
