"""A session as asyncio programs see it: the verbs of `Session`, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, final

import httpx

from hope_client import requests
from hope_client.archive_file import write_new
from hope_client.errors import HopeError
from hope_client.flow import Flow, Progress
from hope_client.objects import (
    LearnResult,
    MemoryStatistics,
    RecallLift,
    Receipt,
    Reply,
    Score,
    SessionInfo,
    Snapshot,
    Turn,
    Version,
)
from hope_client.options import ChatOptions, MemoryOptions, Message, OpenAICall
from hope_client.parts import Teaching
from hope_client.requests import Patch, Question
from hope_client.session_core import SessionCore
from hope_client.streams import ChatStreamReader
from hope_client.transport import AsyncDriver, async_pieces

if TYPE_CHECKING:
    # Part of `typing` from Python 3.11 on; only type checkers need it here.
    from typing_extensions import Unpack


@final
class AsyncSession:
    """One session of a server; get it from `AsyncHopeClient.session`. Each method is that of `Session`, awaited."""

    def __init__(self, driver: AsyncDriver, core: SessionCore) -> None:
        self._driver = driver
        self._core = core

    def __repr__(self) -> str:
        return f"AsyncSession({self.id!r})"

    @property
    def id(self) -> str:
        """The session's name."""
        return self._core.id

    @property
    def version(self) -> str | None:
        """See `Session.version`."""
        return self._core.version

    # -- turns ---

    async def chat(self, prompt: str | Sequence[Message], **options: Unpack[ChatOptions]) -> Reply:
        """See `Session.chat`."""
        return await self._driver.run(self._core.chat(prompt, options))

    def stream(self, prompt: str | Sequence[Message], **options: Unpack[ChatOptions]) -> AsyncReplyStream:
        """See `Session.stream`; the turn begins when the stream is awaited, entered or iterated over."""
        key, opening = self._core.prepare_stream(prompt, options)
        return AsyncReplyStream(self._driver, self._core, opening, key)

    async def learn(
        self,
        teaching: Teaching,
        passes: int | None = None,
        progress: Progress | None = None,
        key: str | None = None,
    ) -> LearnResult:
        """See `Session.learn`."""
        return await self._driver.run(self._core.learn(teaching, passes, progress, key))

    async def consolidate(
        self, passes: int | None = None, progress: Progress | None = None, key: str | None = None
    ) -> LearnResult:
        """See `Session.consolidate`."""
        return await self._driver.run(self._core.consolidate(passes, progress, key))

    async def score(
        self,
        continuations: Sequence[str],
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        window: bool = True,
    ) -> list[Score]:
        """See `Session.score`."""
        return await self._driver.run(self._core.score(continuations, Question(prompt, messages, window)))

    async def recall_lift(self, question: str | Sequence[Message], answer: str) -> RecallLift:
        """See `Session.recall_lift`."""
        return await self._driver.run(self._core.recall_lift(question, answer))

    # -- versions ---

    async def versions(self) -> list[Version]:
        """See `Session.versions`."""
        return await self._driver.run(self._core.versions())

    async def rollback(self, version_or_tag: str) -> SessionInfo:
        """See `Session.rollback`."""
        return await self._driver.run(self._core.rollback(version_or_tag))

    async def snapshot(self, tag: str, version: str | None = None) -> SessionInfo:
        """See `Session.snapshot`."""
        return await self._driver.run(self._core.snapshot(tag, version))

    async def snapshots(self) -> list[Snapshot]:
        """See `Session.snapshots`."""
        return await self._driver.run(self._core.snapshots())

    async def delete_snapshot(self, tag: str) -> None:
        """See `Session.delete_snapshot`."""
        await self._driver.run(self._core.delete_snapshot(tag))

    async def fork(self, id: str | None = None, *, version: str | None = None, tag: str | None = None) -> AsyncSession:
        """See `Session.fork`."""
        info = await self._driver.run(self._core.fork(id, version, tag))
        return AsyncSession(self._driver, self._core.sibling(info))

    async def export(self, path: str | PathLike[str] | None = None, *, version: str | None = None) -> bytes:
        """See `Session.export`."""
        data = await self._driver.run(self._core.export(version))
        if path is not None:
            write_new(path, data)
        return data

    # -- looking after it ---

    async def info(self) -> SessionInfo:
        """See `Session.info`."""
        return await self._driver.run(self._core.info())

    async def memory(self) -> MemoryStatistics:
        """See `Session.memory`."""
        return await self._driver.run(self._core.memory())

    async def turns(self) -> list[Turn]:
        """See `Session.turns`."""
        return await self._driver.run(self._core.turns())

    async def freeze(self) -> SessionInfo:
        """See `Session.freeze`."""
        return await self._driver.run(self._core.set_frozen(True))

    async def unfreeze(self) -> SessionInfo:
        """See `Session.unfreeze`."""
        return await self._driver.run(self._core.set_frozen(False))

    @asynccontextmanager
    async def frozen(self) -> AsyncIterator[AsyncSession]:
        """See `Session.frozen`."""
        was_frozen = await self._driver.run(self._core.freeze_for_now())
        try:
            yield self
        finally:
            if not was_frozen:
                await self.unfreeze()

    async def reset(self, levels: Sequence[str] | None = None) -> SessionInfo:
        """See `Session.reset`."""
        return await self._driver.run(self._core.reset(levels))

    async def patch(
        self, *, frozen: bool | None = None, ttl: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> SessionInfo:
        """See `Session.patch`."""
        return await self._driver.run(self._core.patch(Patch(frozen, ttl, metadata)))

    async def delete(self) -> None:
        """See `Session.delete`."""
        await self._driver.run(self._core.delete())

    def openai_kwargs(self, memory: MemoryOptions | None = None, key: str | None = None) -> OpenAICall:
        """See `Session.openai_kwargs`."""
        return requests.openai_call(self.id, memory, key)


@final
class AsyncReplyStream:
    """The text of an answer as it comes: iterate over it once, then read `receipt`.

    Leaving it early (`close`, the end of an `async with` block) cancels the turn, and nothing of it is kept.
    """

    def __init__(self, driver: AsyncDriver, core: SessionCore, opening: Flow[httpx.Response], key: str) -> None:
        self.key = key
        """The turn's idempotency key: a stream that broke off can be asked for again under it."""
        self._driver = driver
        self._core = core
        self._opening = opening
        self._response: httpx.Response | None = None
        self._reader = ChatStreamReader()
        self._texts = self._run()

    async def __aenter__(self) -> AsyncReplyStream:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, AsyncReplyStream]:
        return self.__aenter__().__await__()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._texts

    async def close(self) -> None:
        """End the turn now if it still runs."""
        if self._response is not None:
            await self._response.aclose()

    @property
    def reply(self) -> Reply:
        """What has come so far; complete when the iteration has ended."""
        return self._reader.reply()

    @property
    def receipt(self) -> Receipt | None:
        """What the turn did to the memory; None before the end, and for a turn without one."""
        return self.reply.receipt

    async def _open(self) -> httpx.Response:
        if self._response is None:
            response = await self._driver.run(self._opening)
            self._reader.request_id = response.headers.get("x-request-id")
            self._response = response
        return self._response

    async def _run(self) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(async_pieces(await self._open(), self._reader)) as found:
                async for piece in found:
                    for text in self._reader.feed(piece):
                        yield text
            self._reader.check_done()
            await self._driver.run(self._core.note(self.receipt, self.reply.text))
        except HopeError as exc:
            exc.key = self.key
            raise
        finally:
            await self.close()
