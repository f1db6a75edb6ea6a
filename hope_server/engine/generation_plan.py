"""How a request is to be answered: a sampler, a detokenizer and a constraint for each reply that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hope_server.engine.constraint import Constraint, Grammars
from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.logprobs import MAX_TOP_LOGPROBS, LogprobLog
from hope_server.engine.run import Generation
from hope_server.engine.sampler import Sampler
from hope_server.engine.tokenizer import Span, Tokenizer
from hope_server.engine.turn import ChatRequest, SamplingParams, TextRequest
from hope_server.errors import InvalidRequest

MAX_CHOICES = 8
"""Replies that one request may ask for."""


class GenerationPlanner:
    """Plans the replies of chat and text requests."""

    def __init__(self, tokenizer: Tokenizer, passes_assistant: int, max_tokens: int) -> None:
        """passes_assistant: how often what the model says is rehearsed, at most; max_tokens: longest reply."""
        self._tokenizer = tokenizer
        self._passes = passes_assistant
        self._max_tokens = max_tokens
        self._grammars = Grammars(tokenizer)

    async def plan(self, request: ChatRequest | TextRequest, spans: Sequence[Span]) -> tuple[Generation, ...]:
        """Plan one generation for each reply to a prompt of `spans`. Raises InvalidRequest."""
        self._check(request.sampling, request.num_choices)
        constraint = None
        if isinstance(request, ChatRequest):
            constraint = await self._grammars.compile(request.output_format, request.tool_use)
        return tuple([self._generation(request, spans, index, constraint) for index in range(request.num_choices)])

    def _generation(
        self, request: ChatRequest | TextRequest, spans: Sequence[Span], index: int, constraint: Constraint | None
    ) -> Generation:
        sampling, passes = request.sampling, request.memory.passes
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index)
        sampler = Sampler(sampling, None if constraint is None else constraint.copy())
        for span in spans:
            sampler.observe_prompt(span.ids)
        is_chat = isinstance(request, ChatRequest)
        num_top = sampling.top_logprobs
        return Generation(
            sampler=sampler,
            detokenizer=StreamingDetokenizer(self._tokenizer, sampling.stop),
            eos_ids=self._tokenizer.eos_ids,
            max_tokens=min(sampling.max_tokens, self._max_tokens),
            closing=self._tokenizer.close_assistant() if is_chat else (),
            passes=self._passes if passes is None else min(passes, self._passes),
            is_message=is_chat,
            num_opening=_num_opening(spans) if is_chat else 0,
            logprobs=None if num_top is None else LogprobLog(self._tokenizer, num_top),
        )

    def _check(self, sampling: SamplingParams, num_choices: int) -> None:
        if not 1 <= num_choices <= MAX_CHOICES:
            raise InvalidRequest(f"n is {num_choices:,}; ask for 1 to {MAX_CHOICES} replies", param="n")
        if not 0 <= (sampling.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
            raise InvalidRequest(
                f"top_logprobs is {sampling.top_logprobs:,}; ask for 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs"
            )
        last = self._tokenizer.vocab_size - 1
        for token, _ in sampling.logit_bias:
            if not 0 <= token <= last:
                raise InvalidRequest(
                    f"logit_bias names token {token:,}, the model's are 0 to {last:,}; leave it out",
                    param="logit_bias",
                )


def _num_opening(spans: Sequence[Span]) -> int:
    """How many tokens at the end of a chat ask the assistant to speak."""
    last = spans[-1] if spans else None
    return len(last.ids) if last is not None and last.role == "assistant" and not last.is_content else 0
