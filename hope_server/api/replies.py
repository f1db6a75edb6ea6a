"""The replies of one turn, put together from the engine's events: content, tool calls and log-probabilities."""

from __future__ import annotations

import math
from typing import Any

from hope_server.engine.tool_format import CallArguments, CallBegun, Content, ReplyEvent, ReplyParser
from hope_server.engine.turn import ReplyFinished, TokenLogprob, TokenText, ToolCall, TurnEvent, TurnFinished

__all__ = ["Replies", "Reply", "logprob_object", "take_logprob"]

# What OpenAI says of a token that cannot be drawn, for which JSON has no number.
_NO_LOGPROB = -9999.0


def take_logprob(value: float) -> float:
    """Return a log-probability as JSON can say it."""
    return max(value, _NO_LOGPROB) if math.isfinite(value) else _NO_LOGPROB


def logprob_object(token: TokenLogprob) -> dict[str, Any]:
    """Return a place of a reply as chat completions and responses tell it."""
    return {**_one(token), "top_logprobs": [_one(each) for each in token.top]}


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": take_logprob(token.logprob), "bytes": list(token.data)}


class Reply:
    """One reply: what was said so far and how it ended."""

    def __init__(self, index: int, *, has_tools: bool) -> None:
        """`has_tools`: look for calls in the text."""
        self.index = index
        self.finish_reason = ""
        self.logprobs: list[TokenLogprob] = []
        self._parser = ReplyParser() if has_tools else None
        self._content: list[str] = []
        self._calls: list[tuple[str, list[str]]] = []
        self._untold: list[TokenLogprob] = []

    @property
    def content(self) -> str:
        """The text that is no call."""
        return "".join(self._content)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls so far."""
        return [ToolCall(name, "".join(pieces)) for name, pieces in self._calls]

    def add(self, event: TokenText) -> list[ReplyEvent]:
        """Take text; return what became certain by it."""
        self.logprobs += event.logprobs
        self._untold += event.logprobs
        if self._parser is None:
            return self._note([Content(event.text)] if event.text else [])
        return self._note(self._parser.push(event.text))

    def end(self, finish_reason: str) -> list[ReplyEvent]:
        """Take the end; return what was held back until then."""
        found = self._note(self._parser.flush()) if self._parser is not None else []
        is_call = self._calls and finish_reason == "stop"
        self.finish_reason = "tool_calls" if is_call else finish_reason
        return found

    def take_untold(self) -> list[TokenLogprob]:
        """Return the log-probabilities that no chunk of a stream has had."""
        untold, self._untold = self._untold, []
        return untold

    def _note(self, events: list[ReplyEvent]) -> list[ReplyEvent]:
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
            elif isinstance(event, CallBegun):
                self._calls.append((event.name, []))
            elif isinstance(event, CallArguments):
                self._calls[event.index][1].append(event.text)
        return events


class Replies:
    """All replies of a turn, in order."""

    def __init__(self, num_replies: int, *, has_tools: bool) -> None:
        self.all = [Reply(index, has_tools=has_tools) for index in range(num_replies)]
        self._reasons: dict[int, str] = {}

    def take(self, event: TurnEvent) -> tuple[Reply, list[ReplyEvent]] | None:
        """Take an event; return the reply that it adds to with what became certain.

        The ends of replies are kept until the turn's, before which nothing is.
        """
        if isinstance(event, TokenText):
            reply = self.all[event.index]
            return reply, reply.add(event)
        if isinstance(event, ReplyFinished):
            self._reasons[event.index] = event.finish_reason
        return None

    def end(self, event: TurnFinished) -> list[tuple[Reply, list[ReplyEvent]]]:
        """End every reply; return what each had held back."""
        return [(reply, reply.end(self._reasons.get(reply.index, event.finish_reason))) for reply in self.all]
