"""A response while it is made: its output items, and the events that tell of them in a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hope_server.api.replies import Reply, logprob_object
from hope_server.api.response_ids import item_id
from hope_server.api.response_object import ResponseObject
from hope_server.api.tools import call_id
from hope_server.engine.tool_format import CallBegun, Content, ReplyEvent
from hope_server.engine.turn import Replay, TokenText, TurnEvent, TurnFinished
from hope_server.errors import HopeError

__all__ = ["ResponseReply"]

Event = dict[str, Any]


class ResponseReply:
    """Makes a response of the engine's events."""

    def __init__(self, response: ResponseObject, *, has_tools: bool) -> None:
        """`has_tools`: look for calls in the text."""
        self.response = response
        self._reply = Reply(0, has_tools=has_tools)
        self._items: list[dict[str, Any]] = []
        self._is_open = False
        self._num_events = 0
        self._num_calls = 0

    def take(self, event: TurnEvent) -> None:
        """Take an event of a response that is not streamed."""
        for _ in self.objects(event):
            pass

    def whole(self, finished: TurnFinished) -> dict[str, Any]:
        """Return the response, complete."""
        *_, last = self.objects(finished)
        found = last["response"]
        assert isinstance(found, dict)
        return found

    def objects(self, event: TurnEvent) -> Iterator[Event]:
        """Yield what one of the engine's events becomes."""
        if isinstance(event, Replay):
            self.response.rename(event.answer_id, event.created)
        elif isinstance(event, TokenText):
            yield from self._begin()
            for each in self._reply.add(event):
                yield from self._tell(each)
        elif isinstance(event, TurnFinished):
            yield from self._end(event)

    def failure(self, error: HopeError) -> Iterator[Event]:
        """Yield what ends the stream of a response that came to nothing."""
        yield from self._begin()
        yield self._event("response.failed", response=self.response.failed(error))

    def _begin(self) -> Iterator[Event]:
        if self._num_events == 0:
            yield self._event("response.created", response=self.response.running())
            yield self._event("response.in_progress", response=self.response.running())

    def _end(self, event: TurnFinished) -> Iterator[Event]:
        yield from self._begin()
        for each in self._reply.end(event.finish_reason):
            yield from self._tell(each)
        if not self._items:
            yield from self._open_message()
        is_cut = event.finish_reason == "length"
        yield from self._close("incomplete" if is_cut else "completed")
        kind = "response.incomplete" if is_cut else "response.completed"
        yield self._event(kind, response=self.response.finished(self._items, event))

    def _tell(self, event: ReplyEvent) -> Iterator[Event]:
        if isinstance(event, Content):
            if not self._is_open or self._items[-1]["type"] != "message":
                yield from self._close()
                yield from self._open_message()
            part = self._items[-1]["content"][0]
            logprobs = [logprob_object(token) for token in self._reply.take_untold()]
            part["text"] += event.text
            part["logprobs"] += logprobs
            yield self._event("response.output_text.delta", **self._in_part(), delta=event.text, logprobs=logprobs)
        elif isinstance(event, CallBegun):
            yield from self._close()
            yield from self._open_call(event)
        else:
            self._items[-1]["arguments"] += event.text
            yield self._event("response.function_call_arguments.delta", **self._in_item(), delta=event.text)

    def _open_message(self) -> Iterator[Event]:
        item = {"id": self._item_id("msg"), "type": "message", "status": "in_progress", "role": "assistant"}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._open(item | {"content": []})
        self._items[-1]["content"] = [part]
        yield self._event("response.content_part.added", **self._in_part(), part=part | {"logprobs": []})

    def _open_call(self, event: CallBegun) -> Iterator[Event]:
        item = {"id": self._item_id("fc"), "type": "function_call", "status": "in_progress"}
        name = call_id(self.response.id, 0, event.index)
        yield self._open(item | {"call_id": name, "name": event.name, "arguments": ""})

    def _open(self, item: dict[str, Any]) -> Event:
        self._items.append(item)
        self._is_open = True
        return self._event("response.output_item.added", output_index=len(self._items) - 1, item=dict(item))

    def _close(self, status: str = "completed") -> Iterator[Event]:
        if not self._is_open:
            return
        self._is_open = False
        item = self._items[-1]
        if item["type"] == "message":
            item["status"] = status
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **self._in_part(), **text)
            yield self._event("response.content_part.done", **self._in_part(), part=part)
        else:
            # A call is told once it is whole, whatever ended the reply behind it.
            item["status"] = "completed"
            called = {"name": item["name"], "arguments": item["arguments"]}
            yield self._event("response.function_call_arguments.done", **self._in_item(), **called)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _item_id(self, prefix: str) -> str:
        return item_id(prefix, self.response.id, len(self._items))

    def _in_item(self) -> Event:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _in_part(self) -> Event:
        return {**self._in_item(), "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return event
