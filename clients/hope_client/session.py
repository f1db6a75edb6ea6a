"""A session: a named memory on the server that grows with what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, final

import httpx

from hope_client import requests
from hope_client.archive_file import write_new
from hope_client.errors import HopeError
from hope_client.flow import Progress
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
from hope_client.transport import Driver, pieces

if TYPE_CHECKING:
    # Part of `typing` from Python 3.11 on; only type checkers need it here.
    from typing_extensions import Unpack


@final
class Session:
    """One session of a server; get it from `HopeClient.session`. Every method may raise a HopeError.

    MemoryRolledBack or MemoryEvicted mean that something the session had learned is lost; no call passes over that.
    """

    def __init__(self, driver: Driver, core: SessionCore) -> None:
        self._driver = driver
        self._core = core

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    @property
    def id(self) -> str:
        """The session's name."""
        return self._core.id

    @property
    def version(self) -> str | None:
        """The newest version that this object saw; None before the first, and while the store does not have it."""
        return self._core.version

    # -- turns ---

    def chat(self, prompt: str | Sequence[Message], **options: Unpack[ChatOptions]) -> Reply:
        """Take one turn and return the whole answer. prompt: the user's text, or messages."""
        return self._driver.run(self._core.chat(prompt, options))

    def stream(self, prompt: str | Sequence[Message], **options: Unpack[ChatOptions]) -> ReplyStream:
        """Take one turn and return its text as it comes, with the parameters of `chat`."""
        key, opening = self._core.prepare_stream(prompt, options)
        response: httpx.Response = self._driver.run(opening)
        return ReplyStream(self._driver, self._core, response, key)

    def learn(
        self,
        teaching: Teaching,
        passes: int | None = None,
        progress: Progress | None = None,
        key: str | None = None,
    ) -> LearnResult:
        """Study a text, a file (a path) or passages (an iterable of str) now.

        passes: how often each piece is rehearsed, 0 to 1000. progress: called as it goes.
        key: the call's idempotency key; None makes one. A text of more than 256 KiB goes in several requests; where
        one fails, the error's `key` and the same text again go on behind the last part that was learned.

        Raises OSError for a file that cannot be read, ValueError for one that is not UTF-8 or a text that is too long.
        """
        return self._driver.run(self._core.learn(teaching, passes, progress, key))

    def consolidate(
        self, passes: int | None = None, progress: Progress | None = None, key: str | None = None
    ) -> LearnResult:
        """Rehearse what the session has read already, with the parameters of `learn`."""
        return self._driver.run(self._core.consolidate(passes, progress, key))

    def score(
        self,
        continuations: Sequence[str],
        *,
        prompt: str | None = None,
        messages: Sequence[Message] | None = None,
        window: bool = True,
    ) -> list[Score]:
        """Return how probable each continuation is behind `prompt` or `messages` (exactly one of them). Read-only.

        A last message of role assistant is continued. window: False empties the attention window for the question,
        so that only weights can know.
        """
        return self._driver.run(self._core.score(continuations, Question(prompt, messages, window)))

    def recall_lift(self, question: str | Sequence[Message], answer: str) -> RecallLift:
        """Return how much likelier the session's weights alone make an answer than the model without the session."""
        return self._driver.run(self._core.recall_lift(question, answer))

    # -- versions ---

    def versions(self) -> list[Version]:
        """Return the kept versions, newest first."""
        return self._driver.run(self._core.versions())

    def rollback(self, version_or_tag: str) -> SessionInfo:
        """Make the state of a kept version the newest; what came after it stays among the versions."""
        return self._driver.run(self._core.rollback(version_or_tag))

    def snapshot(self, tag: str, version: str | None = None) -> SessionInfo:
        """Keep a version (None: the newest) under a name, until that is removed.

        A tag that keeps another version already is refused as InvalidRequest; remove it first.
        """
        return self._driver.run(self._core.snapshot(tag, version))

    def snapshots(self) -> list[Snapshot]:
        """Return the tagged versions."""
        return self._driver.run(self._core.snapshots())

    def delete_snapshot(self, tag: str) -> None:
        """Remove a tag; its version is then kept as long as any other."""
        self._driver.run(self._core.delete_snapshot(tag))

    def fork(self, id: str | None = None, *, version: str | None = None, tag: str | None = None) -> Session:
        """Make a second session from a kept version or tag (neither: from the newest); the two then learn apart.

        id: of the new session; None lets the server choose. Raises SessionExists, VersionNotFound.
        """
        info = self._driver.run(self._core.fork(id, version, tag))
        return Session(self._driver, self._core.sibling(info))

    def export(self, path: str | PathLike[str] | None = None, *, version: str | None = None) -> bytes:
        """Return a kept version (None: the newest) as one file's content, for `HopeClient.import_session`.

        path: also write it there, for the user alone; it holds what the session knows, unencrypted. Raises OSError
        where it cannot be written, FileExistsError where it exists.
        """
        data = self._driver.run(self._core.export(version))
        if path is not None:
            write_new(path, data)
        return data

    # -- looking after it ---

    def info(self) -> SessionInfo:
        """Return what the server knows of the session now."""
        return self._driver.run(self._core.info())

    def memory(self) -> MemoryStatistics:
        """Return statistics of the session's memory, level by level."""
        return self._driver.run(self._core.memory())

    def turns(self) -> list[Turn]:
        """Return the log of the session's latest turns, newest first."""
        return self._driver.run(self._core.turns())

    def freeze(self) -> SessionInfo:
        """Let turns read and not learn, until `unfreeze`."""
        return self._driver.run(self._core.set_frozen(True))

    def unfreeze(self) -> SessionInfo:
        """Let turns learn again."""
        return self._driver.run(self._core.set_frozen(False))

    @contextmanager
    def frozen(self) -> Iterator[Session]:
        """Freeze the session for a `with` block, for everybody; afterwards it is as it was before."""
        was_frozen = self._driver.run(self._core.freeze_for_now())
        try:
            yield self
        finally:
            if not was_frozen:
                self.unfreeze()

    def reset(self, levels: Sequence[str] | None = None) -> SessionInfo:
        """Make memory levels (None: all of them) as new, in a new version; older versions stay."""
        return self._driver.run(self._core.reset(levels))

    def patch(
        self, *, frozen: bool | None = None, ttl: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> SessionInfo:
        """Change what is said of the session; None leaves a field as it is. ttl: as in `HopeClient.session`."""
        return self._driver.run(self._core.patch(Patch(frozen, ttl, metadata)))

    def delete(self) -> None:
        """Delete the session with everything it learned."""
        self._driver.run(self._core.delete())

    def openai_kwargs(self, memory: MemoryOptions | None = None, key: str | None = None) -> OpenAICall:
        """Return what makes a call of the openai client a turn of this session, to be given to it as `**kwargs`."""
        return requests.openai_call(self.id, memory, key)


@final
class ReplyStream:
    """The text of an answer as it comes: iterate over it once, then read `receipt`.

    Leaving it early (`close`, the end of a `with` block) cancels the turn, and nothing of it is kept.
    """

    def __init__(self, driver: Driver, core: SessionCore, response: httpx.Response, key: str) -> None:
        self.key = key
        """The turn's idempotency key: a stream that broke off can be asked for again under it."""
        self._driver = driver
        self._core = core
        self._response = response
        self._reader = ChatStreamReader(response.headers.get("x-request-id"))
        self._texts = self._run()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def close(self) -> None:
        """End the turn now if it still runs."""
        self._response.close()

    @property
    def reply(self) -> Reply:
        """What has come so far; complete when the iteration has ended."""
        return self._reader.reply()

    @property
    def receipt(self) -> Receipt | None:
        """What the turn did to the memory; None before the end, and for a turn without one."""
        return self.reply.receipt

    def _run(self) -> Iterator[str]:
        try:
            for piece in pieces(self._response, self._reader):
                yield from self._reader.feed(piece)
            self._reader.check_done()
            self._driver.run(self._core.note(self.receipt, self.reply.text))
        except HopeError as exc:
            exc.key = self.key
            raise
        finally:
            self._response.close()
