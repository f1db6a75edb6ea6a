"""From a request to a Run: which messages are new, as tokens, who wrote each, and how often it is to be rehearsed."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from hope_memory.protocol import SessionRecord

from hope_server.engine.document import encode_long, taught
from hope_server.engine.generation_plan import GenerationPlanner
from hope_server.engine.paths import Path, fresh_path
from hope_server.engine.run import FeedToken, Rehearsal, Run, Scoring
from hope_server.engine.session_card import SessionCard
from hope_server.engine.sessions import key_of
from hope_server.engine.text_plan import plan_text
from hope_server.engine.tokenizer import Span, Tokenizer
from hope_server.engine.transcript import EMPTY, Conversation, epoch_after
from hope_server.engine.turn import ChatRequest, LearnRequest, MemoryOptions, Message, ScoreRequest, TextRequest
from hope_server.errors import InvalidRequest, PromptTooLong

LARGE_TEXT = 20_000
FAR_TOO_LONG_CHARS = 8
FULL_EFFORT_TOKENS = 2_048
LEAST_PASSES = 2
# Whom the session takes a message to be from when it is rehearsed; what others wrote is text like any other.
_JOURNAL_SOURCES = {"user": "user", "assistant": "assistant"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Limits in tokens, how often each kind of text is rehearsed by default, and the names of the memory's levels."""

    max_prompt_tokens: int
    max_continuation_tokens: int
    passes_user: int
    passes_assistant: int
    passes_learn: int
    max_passes: int
    max_completion_tokens: int
    levels: tuple[str, ...] = ()


class RequestPlanner:
    """Turns requests into runs. Raises InvalidRequest for what cannot be served."""

    def __init__(self, tokenizer: Tokenizer, settings: PlanSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._generations = GenerationPlanner(tokenizer, settings.passes_assistant, settings.max_completion_tokens)

    async def chat(self, request: ChatRequest, record: SessionRecord | None, path: Path | None = None) -> Run:
        """Plan a chat turn along a path in a session (None: from nothing, all of its messages)."""
        path = path or fresh_path(request)
        options = request.memory
        spans = await self._render(path.messages, continuing=path.is_continuing)
        learns = record is not None and options.mode == "write" and path.not_learned is None
        num_tokens = sum(len(span.ids) for span in spans)
        self._check_length(num_tokens)
        feed = await _off_loop(4 * num_tokens, lambda: self._feed(spans, options, learns=learns))
        self._check_levels(options)
        generations = await self._generations.plan(request, spans)
        return Run(
            emit=_unset,
            feed=feed,
            key=key_of(record) if record is not None else None,
            tenant=request.tenant,
            version=path.base.version if path.base is not None else None,
            learns=learns,
            keep_window=options.window,
            generation=generations[0],
            others=generations[1:],
            conversation=path.conversation,
            card=card_of(record).living(options.ttl_seconds),
            levels=options.levels,
            reply_source="assistant" if "assistant" in options.sources else None,
            answer_id=request.attempt.answer_id,
            created=request.attempt.created or int(time.time()),
            not_learned=path.not_learned,
        )

    async def text(self, request: TextRequest, record: SessionRecord | None) -> Run:
        """Plan to go on from plain text."""
        await self._refuse_far_too_long([request.prompt])
        ids = await self._encode(request.prompt)
        if not ids:
            raise InvalidRequest("prompt is empty; send text to go on from", param="prompt")
        self._check_length(len(ids))
        passes = self._passes(request.memory.passes, self._settings.passes_user)
        run = plan_text(request, ids, passes, record)
        run.generation, *others = await self._generations.plan(request, [Span("user", tuple(ids), is_content=True)])
        run.others = tuple(others)
        return run

    async def learn(self, request: LearnRequest, record: SessionRecord) -> Run:
        """Plan a `learn`, or a `consolidate` where there is no text."""
        head = record.head
        conversation = Conversation.of(head.meta if head is not None else {})
        passes = self._passes(request.passes, self._settings.passes_learn)
        feed: deque[FeedToken] = deque()
        if request.text is not None:
            text = request.text.strip()
            if not text:
                raise InvalidRequest("text is empty; send something to learn", param="text")
            ids = await _off_loop(len(text), lambda: encode_long(text, self._tokenizer.encode))
            if request.passes is None:
                passes = effort(len(ids), passes)
            closing = await self._encode("\n")
            feed = await _off_loop(len(text), partial(taught, ids, closing, passes))
        return Run(
            emit=_unset,
            feed=feed,
            key=key_of(record),
            tenant=record.session.tenant,
            version=head.version if head is not None else None,
            learns=True,
            rehearsal=Rehearsal(passes),
            conversation=replace(conversation, epoch=epoch_after(conversation.epoch, request.text or "")),
            card=card_of(record),
            kind="consolidate" if request.text is None else "learn",
            answer_id=request.attempt.answer_id,
            created=request.attempt.created or int(time.time()),
        )

    async def score(self, request: ScoreRequest, record: SessionRecord | None) -> Run:
        """Plan a score request."""
        head = record.head if record is not None else None
        if request.messages is not None:
            is_open = bool(request.messages) and request.messages[-1].role == "assistant"
            chain = str(head.meta.get("chain", EMPTY)) if head is not None else EMPTY
            continuing = request.window and chain != EMPTY
            spans = await self._render(request.messages, continuing=continuing, open_last=is_open)
            prompt = [token for span in spans for token in span.ids]
        else:
            await self._refuse_far_too_long([request.prompt or ""])
            prompt = await self._encode(request.prompt or "")
        self._check_length(len(prompt))
        continuations = tuple([tuple(await self._encode(text)) for text in request.continuations])
        limit = self._settings.max_continuation_tokens
        for text, tokens in zip(request.continuations, continuations, strict=True):
            if not tokens:
                raise InvalidRequest(f"continuation {text!r} is empty; send text to score", param="continuations")
            if len(tokens) > limit:
                raise InvalidRequest(
                    f"a continuation has {len(tokens):,} tokens, the limit is {limit:,}; score it in parts",
                    param="continuations",
                )
        return Run(
            emit=_unset,
            feed=deque(FeedToken(token) for token in prompt),
            key=key_of(record) if record is not None else None,
            tenant=request.tenant,
            version=head.version if head is not None else None,
            keep_window=request.window,
            scoring=Scoring(continuations),
        )

    # -- private ---

    def _feed(self, spans: list[Span], options: MemoryOptions, *, learns: bool) -> deque[FeedToken]:
        settings = self._settings
        user = self._passes(options.passes, settings.passes_user)
        own = min(self._passes(options.passes, settings.passes_assistant), settings.passes_assistant)
        teaching: dict[str, tuple[str, int]] = {
            role: (_JOURNAL_SOURCES.get(role, "text"), own if role == "assistant" else user)
            for role in options.sources
            if learns
        }
        feed: deque[FeedToken] = deque()
        for span in spans:
            role = "system" if span.role == "developer" else span.role
            teaches = span.is_content and role in teaching and (not span.is_untrusted or "untrusted" in teaching)
            source, passes = teaching[role] if teaches else (None, 0)
            levels = options.levels if teaches else None
            feed.extend(FeedToken(token, source, passes, levels) for token in span.ids)
        return feed

    def _check_levels(self, options: MemoryOptions) -> None:
        unknown = [name for name in options.levels or () if name not in self._settings.levels]
        if unknown:
            known = ", ".join(self._settings.levels) or "none"
            raise InvalidRequest(f"memory.levels names {unknown[0][:64]!r}; there are: {known}", param="memory.levels")

    async def _render(self, messages: tuple[Message, ...], *, continuing: bool, open_last: bool = False) -> list[Span]:
        # Each message costs the template some time, however short it is.
        size = sum(len(message.content) + 64 for message in messages)
        await self._refuse_far_too_long([message.content for message in messages])
        return await _off_loop(
            size, lambda: self._tokenizer.render_chat(messages, continuing=continuing, open_last=open_last)
        )

    async def _encode(self, text: str) -> list[int]:
        return await _off_loop(len(text), lambda: self._tokenizer.encode(text))

    async def _refuse_far_too_long(self, texts: Sequence[str]) -> None:
        """Raise PromptTooLong for texts that are far over the limit, having looked at their beginning only.

        To count all tokens of megabytes takes seconds, which anyone could have the server spend.
        """
        limit, num_chars = self._settings.max_prompt_tokens, sum(map(len, texts))
        if num_chars <= FAR_TOO_LONG_CHARS * limit:
            return
        start = "".join(texts)[: FAR_TOO_LONG_CHARS * limit]
        pieces = [start[at : at + LARGE_TEXT] for at in range(0, len(start), LARGE_TEXT)]

        def count() -> int:
            found = 0
            for rank, piece in enumerate(pieces, 1):
                found += len(self._tokenizer.encode(piece))
                # Where a piece was cut a token or two may be counted twice.
                if found > limit + 2 * rank:
                    return found * num_chars // min(rank * LARGE_TEXT, len(start))
            return 0

        if num_tokens := await _off_loop(num_chars, count):
            raise PromptTooLong(num_tokens, limit, is_estimate=True)

    def _passes(self, asked: int | None, default: int) -> int:
        return default if asked is None else min(asked, self._settings.max_passes)

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self._settings.max_prompt_tokens:
            raise PromptTooLong(num_tokens, self._settings.max_prompt_tokens)


def effort(num_tokens: int, passes: int) -> int:
    """How often to rehearse a text of `num_tokens` by default: fully when short, less often the longer it is."""
    if num_tokens <= FULL_EFFORT_TOKENS:
        return passes
    return max(min(passes, LEAST_PASSES), passes * FULL_EFFORT_TOKENS // num_tokens)


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """Do tokenizer work, in a thread where the text is large."""
    return await asyncio.to_thread(work) if size > LARGE_TEXT else work()


def card_of(record: SessionRecord | None) -> SessionCard:
    """What belongs to a session, as its newest version has it."""
    return SessionCard.of(record.head.meta if record is not None and record.head is not None else {})


def _unset(event: object) -> None:
    raise RuntimeError(f"a run reported {type(event).__name__} before it was submitted")
