"""The response object of POST /v1/responses: what was asked, what came of it, and the receipt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from hope_server.api.response_body import ResponseBody
from hope_server.api.tools import Choice
from hope_server.api.wire import dump, receipt_object, response_usage
from hope_server.engine.turn import ChatRequest, TurnFinished
from hope_server.errors import HopeError

__all__ = ["ResponseObject", "spell_named"]


def spell_named(payload: Mapping[str, Any]) -> bytes:
    """Return an event of a stream of responses, which is named by its type."""
    return b"event: " + str(payload["type"]).encode("ascii") + b"\ndata: " + dump(payload) + b"\n\n"


class ResponseObject:
    """Everything of a response but its output, which its writer has."""

    def __init__(self, model: str, turn: ChatRequest, body: ResponseBody) -> None:
        self.id = turn.attempt.answer_id
        self.created = turn.attempt.created
        self._asked = _asked(model, turn, body)

    def rename(self, response_id: str, created: int | None = None) -> None:
        """Give it another name, and the time of another answer: that of the first where this one repeats it."""
        self.id = response_id
        self.created = self.created if created is None else created

    def running(self) -> dict[str, Any]:
        """Return the object while nothing came of it yet."""
        return self._with("in_progress", [], None)

    def finished(self, output: list[dict[str, Any]], end: TurnFinished) -> dict[str, Any]:
        """Return the object at the end."""
        is_cut = end.finish_reason == "length"
        found = self._with("incomplete" if is_cut else "completed", output, end)
        if is_cut:
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        return found

    def failed(self, error: HopeError) -> dict[str, Any]:
        """Return the object of a response that came to nothing."""
        return self._with("failed", [], None) | {"error": {"code": error.code, "message": error.message}}

    def _with(self, status: str, output: list[dict[str, Any]], end: TurnFinished | None) -> dict[str, Any]:
        is_over = status in ("completed", "incomplete")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": max(self.created, int(time.time())) if is_over else None,
            "status": status,
            "incomplete_details": None,
            "error": None,
            "output": output,
            "usage": None if end is None else response_usage(end.usage),
            **self._asked,
            "memory": None if end is None else receipt_object(end.receipt),
        }


def _asked(model: str, turn: ChatRequest, body: ResponseBody) -> dict[str, Any]:
    sampling = turn.sampling
    found = {
        "model": model,
        "previous_response_id": body.previous_response_id,
        "instructions": body.instructions,
        "tools": [_tool(tool) for tool in (body.tools or [])],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": {"format": _format(body), "verbosity": "medium"},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "top_logprobs": sampling.top_logprobs or 0,
        "reasoning": {"effort": None, "summary": None},
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "truncation": body.truncation or "disabled",
        "store": body.store is not False,
        "background": False,
        "service_tier": "default",
        "metadata": body.metadata or {},
        "safety_identifier": None,
        "prompt_cache_key": body.prompt_cache_key,
    }
    if body.conversation is not None:
        found["conversation"] = {"id": body.conversation}
    return found


def _tool(tool: Any) -> dict[str, Any]:
    return {
        "type": "function",
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def _choice(choice: Choice | None) -> Any:
    if choice is None:
        return "auto"
    return {"type": "function", "name": choice.name} if choice.kind == "function" else choice.kind


def _format(body: ResponseBody) -> dict[str, Any]:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    output, given = body.text.format
    if output.kind != "json_schema":
        return {"type": output.kind}
    inner = given.get("json_schema", given)
    fields = {name: inner.get(name) for name in ("description", "schema", "strict")}
    return {"type": output.kind, "name": inner.get("name") or "reply", **fields}
