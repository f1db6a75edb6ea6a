"""From a request to a Run: which messages are new, as tokens, who wrote each, and how often it is to be rehearsed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hope_memory.protocol import CommitInfo, SessionRecord

from hope_server.engine.detokenizer import StreamingDetokenizer
from hope_server.engine.run import FeedToken, Generation, Rehearsal, Run, Scoring
from hope_server.engine.sampler import Sampler
from hope_server.engine.sessions import key_of
from hope_server.engine.tokenizer import Span, Tokenizer
from hope_server.engine.transcript import EMPTY, NewMessages, find_known, system_digest, unread
from hope_server.engine.turn import ChatRequest, LearnRequest, MemoryOptions, Message, ScoreRequest
from hope_server.errors import InvalidRequest, PromptTooLong

LARGE_TEXT = 20_000
FULL_EFFORT_TOKENS = 512
LEAST_PASSES = 2
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """Limits in tokens, and how often each kind of text is rehearsed by default."""

    max_prompt_tokens: int
    max_continuation_tokens: int
    passes_user: int
    passes_assistant: int
    passes_learn: int


class RequestPlanner:
    """Turns requests into runs. Raises InvalidRequest for what cannot be served."""

    def __init__(self, tokenizer: Tokenizer, settings: PlanSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings

    def repeats_history(self, request: ChatRequest, version: CommitInfo) -> bool:
        """Whether the request's messages begin with the conversation of a version (and go on)."""
        chain = str(version.meta.get("chain", EMPTY))
        return chain != EMPTY and find_known(request.messages, [chain]) is not None

    async def chat(self, request: ChatRequest, record: SessionRecord | None, base: CommitInfo | None) -> Run:
        """Plan a chat turn that goes on from version `base` of the session (None: from nothing)."""
        if not request.messages:
            raise InvalidRequest("messages is empty; send at least one message", param="messages")
        options = request.memory
        info: dict[str, Any] = base.meta if base is not None else {}
        chain, systems = str(info.get("chain", EMPTY)), tuple(info.get("systems", ()))
        known = find_known(request.messages, [chain]) if chain != EMPTY and options.window else None
        if options.window and base is not None:
            new = unread(request.messages, chain, known[1] if known else None, systems)
        else:
            new = unread(request.messages, EMPTY, 0, ())
        if not new.messages:
            raise InvalidRequest("the session has read all of these messages already; add a new one", param="messages")
        continuing = options.window and chain != EMPTY
        spans = await self._render(new.messages, continuing=continuing)
        learns = record is not None and options.mode == "write"
        feed = self._feed(spans, options, learns=learns)
        self._check_length(len(feed))
        return Run(
            emit=_unset,
            feed=feed,
            key=key_of(record) if record is not None else None,
            version=base.version if base is not None else None,
            learns=learns,
            keep_window=options.window,
            generation=self._generation(request, feed),
            chain=new.chain,
            systems=_systems(systems, new),
        )

    async def learn(self, request: LearnRequest, record: SessionRecord) -> Run:
        """Plan a `learn`, or a `consolidate` where there is no text."""
        head = record.head
        info: dict[str, Any] = head.meta if head is not None else {}
        passes = self._settings.passes_learn if request.passes is None else request.passes
        feed: deque[FeedToken] = deque()
        if request.text is not None:
            text = request.text.strip()
            if not text:
                raise InvalidRequest("text is empty; send something to learn", param="text")
            ids = await self._encode(text)
            if request.passes is None:
                passes = effort(len(ids), passes)
            feed.extend(FeedToken(token, "text", passes) for token in ids)
            feed.extend(FeedToken(token) for token in await self._encode("\n"))
        return Run(
            emit=_unset,
            feed=feed,
            key=key_of(record),
            version=head.version if head is not None else None,
            learns=True,
            rehearsal=Rehearsal(passes),
            chain=str(info.get("chain", EMPTY)),
            systems=tuple(info.get("systems", ())),
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
            version=head.version if head is not None else None,
            keep_window=request.window,
            scoring=Scoring(continuations),
        )

    # -- private ---

    def _generation(self, request: ChatRequest, feed: deque[FeedToken]) -> Generation:
        sampler = Sampler(request.sampling)
        sampler.observe_prompt([token.token for token in feed])
        passes = request.memory.passes
        return Generation(
            sampler=sampler,
            detokenizer=StreamingDetokenizer(self._tokenizer, request.sampling.stop),
            eos_ids=self._tokenizer.eos_ids,
            max_tokens=request.sampling.max_tokens,
            closing=self._tokenizer.close_assistant(),
            passes=self._settings.passes_assistant if passes is None else min(passes, self._settings.passes_assistant),
        )

    def _feed(self, spans: list[Span], options: MemoryOptions, *, learns: bool) -> deque[FeedToken]:
        settings = self._settings
        user = settings.passes_user if options.passes is None else options.passes
        own = settings.passes_assistant if options.passes is None else min(options.passes, settings.passes_assistant)
        teaching = {"user": user, "assistant": own} if learns else {}
        return deque(
            FeedToken(token, span.role, teaching[span.role])
            if span.is_content and span.role in teaching
            else FeedToken(token)
            for span in spans
            for token in span.ids
        )

    async def _render(self, messages: tuple[Message, ...], *, continuing: bool, open_last: bool = False) -> list[Span]:
        size = sum(len(message.content) for message in messages)
        return await _off_loop(
            size, lambda: self._tokenizer.render_chat(messages, continuing=continuing, open_last=open_last)
        )

    async def _encode(self, text: str) -> list[int]:
        return await _off_loop(len(text), lambda: self._tokenizer.encode(text))

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


def _systems(before: tuple[str, ...], new: NewMessages) -> tuple[str, ...]:
    found = [digest for message in new.messages if (digest := system_digest(message)) is not None]
    return tuple(dict.fromkeys([*before, *found]))


def _unset(event: object) -> None:
    raise RuntimeError(f"a run reported {type(event).__name__} before it was submitted")
