"""Replies that must have a form: JSON, JSON that fits a schema, or calls of tools. llguidance knows the grammar; here
it is compiled beside the event loop, and masks the logits of every token that would break the form.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from hope_server.engine.tokenizer import Tokenizer
from hope_server.engine.tool_format import tool_grammar
from hope_server.engine.turn import OutputFormat, ToolUse
from hope_server.errors import InvalidRequest

MAX_SCHEMA_BYTES = 64 << 10
"""Size of a JSON schema; a grammar of several tools may have four times that."""

COMPILE_SECONDS = 5.0

# Between tokens of JSON: one space, or a line break with its indentation. Unlimited, small models write nothing else.
_OPTIONS = {"x-guidance": {"whitespace_pattern": r"( |\n {0,24})"}}
_MAX_REASON = 300


class Constraint:
    """The grammar of one reply, and how far the reply has come in it. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, param: str) -> None:
        """`matcher` is at the beginning of a reply; `param` names the request's field that the grammar is of."""
        self._matcher = matcher
        self._param = param

    def copy(self) -> Constraint:
        """A constraint of the same grammar that has come equally far."""
        return Constraint(self._matcher.deep_copy(), self._param)

    def mask(self, logits: Tensor) -> Tensor:
        """Return a copy of CPU `logits` (V,) with minus infinity for every token that may not come next.

        Where the reply is complete, only what ends it is left. Raises InvalidRequest when the grammar grows too
        complex to go on.
        """
        bits = self._matcher.compute_bitmask()
        self._check()
        allowed = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").view(np.bool_)
        known = min(logits.numel(), allowed.size)
        masked = torch.full_like(logits, -math.inf)
        np.copyto(masked.numpy()[:known], logits.numpy()[:known], where=allowed[:known])
        return masked

    def accept(self, token: int) -> None:
        """Note the token that was drawn. Raises InvalidRequest as `mask` does."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(
                f"{self._param} grew too complex while it was followed: {_reason(self._matcher)}; make it simpler",
                param=self._param,
            )


class Grammars:
    """Compiles what requests demand of replies, for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._source = tokenizer
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(2, "hope-grammar")

    async def compile(self, output_format: OutputFormat, tool_use: ToolUse | None) -> Constraint | None:
        """Return the constraint of a reply at its beginning, None where the reply is free. Raises InvalidRequest."""
        form = grammar_of(output_format, tool_use)
        if form is None:
            return None
        grammar, param = form
        work = asyncio.get_running_loop().run_in_executor(self._pool, self._compile, grammar, param)
        try:
            return await asyncio.wait_for(work, COMPILE_SECONDS)
        except TimeoutError:
            raise InvalidRequest(
                f"{param} took more than {COMPILE_SECONDS:g} seconds to compile; make it simpler", param=param
            ) from None

    def _compile(self, grammar: str, param: str) -> Constraint:
        matcher = LLMatcher(self._prepared(), grammar, log_level=0)
        if not matcher.is_error():
            # The first mask builds most of the lexer; a reply then begins without waiting for it.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidRequest(f"{param} cannot be followed: {_reason(matcher)}", param=param)
        return Constraint(matcher, param)

    def _prepared(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer(
                    self._source.to_json(),
                    eos_token=sorted(self._source.eos_ids),
                    slices=LLTokenizer.json_slices(),
                )
            return self._tokenizer


def grammar_of(output_format: OutputFormat, tool_use: ToolUse | None) -> tuple[str, str] | None:
    """The llguidance grammar of a reply and the request's field that demands it; None where the reply is free.

    Calls that are demanded come before the format, which is that of an answer in words. Raises InvalidRequest.
    """
    calls = None if tool_use is None else tool_grammar(tool_use)
    if calls is not None:
        _check_size(calls, 4 * MAX_SCHEMA_BYTES, "tools")
        return LLMatcher.grammar_from_lark(calls), "tools"
    if output_format.kind == "text":
        return None
    schema = {"type": "object"} if output_format.kind == "json_object" else _schema(output_format.schema)
    if tool_use is None or tool_use.choice != "auto" or not tool_use.tools:
        return LLMatcher.grammar_from_json_schema({**schema, **_OPTIONS}), "response_format"
    # The answer has the format, or there are calls instead of an answer.
    calls = (tool_grammar(replace(tool_use, choice="required")) or "").replace("start:", "calls:", 1)
    _check_size(calls, 4 * MAX_SCHEMA_BYTES, "tools")
    answer = json.dumps({**schema, **_OPTIONS})
    return LLMatcher.grammar_from_lark(f"{calls}start: calls | answer\nanswer: %json {answer}\n"), "response_format"


def _schema(text: str) -> dict[str, Any]:
    _check_size(text, MAX_SCHEMA_BYTES, "response_format")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"the JSON schema is no JSON: {exc}", param="response_format") from None
    if not isinstance(schema, dict):
        raise InvalidRequest(
            f"the JSON schema is a {type(schema).__name__}; send a JSON object", param="response_format"
        )
    return schema


def _check_size(text: str, limit: int, param: str) -> None:
    size = len(text.encode(errors="replace"))
    if size > limit:
        raise InvalidRequest(f"{param} has {size:,} bytes of schema, the limit is {limit:,}; shorten it", param=param)


def _reason(matcher: LLMatcher) -> str:
    """What llguidance says is wrong, in one line."""
    text = " ".join(matcher.get_error().partition("<state>")[0].split())
    return text[:_MAX_REASON] or "no reason is known"
