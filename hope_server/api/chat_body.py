"""The body of POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import model_validator

from hope_server.api.messages import Messages
from hope_server.api.openai_names import CHAT_NAMES
from hope_server.api.sampling import MaxTokens, SamplingBody, TopLogprobs
from hope_server.api.session_id import SessionBody
from hope_server.api.tools import ResponseFormat, ToolChoice, Tools, tool_use
from hope_server.engine.turn import OutputFormat, SamplingParams, ToolUse
from hope_server.errors import InvalidRequest

__all__ = ["ChatBody"]

_BOTH_LIMITS = ["max_tokens", "max_completion_tokens"]


class ChatBody(SamplingBody, SessionBody):
    """A chat completion request: OpenAI's, plus `session_id`, `memory`, `top_k` and `repetition_penalty`."""

    rules = CHAT_NAMES
    constraint: ClassVar[dict[str, Any]] = {
        "allOf": [
            {"not": {"required": _BOTH_LIMITS, "properties": {name: {"type": "integer"} for name in _BOTH_LIMITS}}},
            {
                "anyOf": [
                    {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
                    {"properties": {"top_logprobs": {"enum": [None, 0]}}},
                ]
            },
        ]
    }

    messages: Messages
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            reason = f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}; send only one of them"
            raise InvalidRequest(reason, param="max_tokens")
        if self.top_logprobs and not self.logprobs:
            reason = f"top_logprobs is {self.top_logprobs} without logprobs; send logprobs true too"
            raise InvalidRequest(reason, param="top_logprobs")
        # Raises where the tools, the choice and the format do not go together.
        self.to_tool_use()
        return self

    def to_sampling(self) -> SamplingParams:
        """Return how to draw tokens."""
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return self.draw(limit, (self.top_logprobs or 0) if self.logprobs else None)

    def to_format(self) -> OutputFormat:
        """Return what the reply must be."""
        return self.response_format or OutputFormat()

    def to_tool_use(self) -> ToolUse | None:
        """Return the tools that the reply may call. Raises InvalidRequest."""
        tools = [tool.function for tool in self.tools or []]
        return tool_use(tools, self.tool_choice, self.parallel_tool_calls, self.to_format())
