"""A session: a named memory on the server that grows with what it is told."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, final

import httpx

from hope_client import answers, requests
from hope_client.errors import TimedOut
from hope_client.objects import (
    LearnProgress,
    LearnResult,
    MemoryOptions,
    Message,
    Receipt,
    Reply,
    Score,
    SessionInfo,
    Version,
    from_json,
)
from hope_client.streams import ChatStreamReader, LearnStreamReader

if TYPE_CHECKING:
    from hope_client.client import HopeClient

Progress = Callable[[LearnProgress], None]


@final
class Session:
    """One session of a server; get it from `HopeClient.session`. Every method may raise a HopeError."""

    def __init__(self, client: HopeClient, info: SessionInfo) -> None:
        self._client = client
        self._info = info
        self._version = info.version

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    @property
    def id(self) -> str:
        """The session's name."""
        return self._info.id

    @property
    def version(self) -> str | None:
        """The newest version that this object saw; None before the first, and while the store does not have it."""
        return self._version

    def info(self) -> SessionInfo:
        """Return what the server knows of the session now."""
        return self._take(from_json(SessionInfo, self._client.send(requests.get_session(self.id))))

    def chat(
        self,
        prompt: str | Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        memory: MemoryOptions | None = None,
        options: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> Reply:
        """Take one turn and return the whole answer.

        prompt: the user's text, or messages. options: further OpenAI parameters, such as `top_p`, `seed` or `stop`.
        key: the turn's idempotency key; None makes one. The same turn under the same key is learned once.
        """
        turn = requests.Turn(prompt, temperature, max_tokens, memory, options or {})
        reply = answers.read_reply(self._client.send(requests.chat(self._info, turn, self._terms(key), stream=False)))
        self._note(reply.receipt)
        return reply

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        memory: MemoryOptions | None = None,
        options: Mapping[str, object] | None = None,
        key: str | None = None,
    ) -> ReplyStream:
        """Take one turn and return its text as it comes, with the parameters of `chat`."""
        turn = requests.Turn(prompt, temperature, max_tokens, memory, options or {})
        call = requests.chat(self._info, turn, self._terms(key), stream=True)
        response = self._client.repeat(call, lambda: self._client.open_stream(call))
        return ReplyStream(response, call.headers["Idempotency-Key"], self._note)

    def learn(
        self, text: str, passes: int | None = None, progress: Progress | None = None, key: str | None = None
    ) -> LearnResult:
        """Study `text` now.

        passes: how often each piece is rehearsed, 0 to 1000. progress: called as it goes. key: as in `chat`.
        """
        return self._learn(text, passes, progress, key)

    def consolidate(
        self, passes: int | None = None, progress: Progress | None = None, key: str | None = None
    ) -> LearnResult:
        """Rehearse what the session has read already, with the parameters of `learn`."""
        return self._learn(None, passes, progress, key)

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
        call = requests.score(self.id, continuations, prompt=prompt, messages=messages, window=window)
        return answers.read_scores(self._client.send(call))

    def versions(self) -> list[Version]:
        """Return the kept versions, newest first."""
        return answers.read_versions(self._client.send(requests.list_versions(self.id)))

    def rollback(self, version: str) -> SessionInfo:
        """Make the state of a kept version the newest; what came after it stays among the versions."""
        expected = self._version if self._client.strict else None
        return self._take(from_json(SessionInfo, self._client.send(requests.rollback(self.id, version, expected))))

    def fork(self, id: str | None = None, version: str | None = None) -> Session:
        """Make a second session from a kept version (None: the newest); id None lets the server choose its id."""
        return self._client.open_session(requests.fork_session(self.id, id, version))

    def export(self, version: str | None = None) -> bytes:
        """Return a kept version (None: the newest) as one file, for `HopeClient.import_`."""
        return self._client.send_for_bytes(requests.export_session(self.id, version))

    def delete(self) -> None:
        """Delete the session with everything it learned."""
        self._client.send(requests.delete_session(self.id))

    def _learn(self, text: str | None, passes: int | None, progress: Progress | None, key: str | None) -> LearnResult:
        call = requests.learn(self.id, text, passes, self._terms(key))
        result = self._client.repeat(call, lambda: self._learn_once(call, progress))
        self._note(result.receipt)
        return result

    def _learn_once(self, call: requests.Call, progress: Progress | None) -> LearnResult:
        response = self._client.open_stream(call)
        reader = LearnStreamReader(response.headers.get("x-request-id"))
        try:
            for piece in _pieces(response, reader):
                for report in reader.feed(piece):
                    if progress is not None:
                        progress(report)
        finally:
            response.close()
        return reader.result()

    def _terms(self, key: str | None) -> requests.Terms:
        return requests.Terms(key or secrets.token_hex(16), self._version if self._client.strict else None)

    def _take(self, info: SessionInfo) -> SessionInfo:
        self._info, self._version = info, info.version
        return info

    def _note(self, receipt: Receipt | None) -> None:
        if receipt is not None and receipt.mode == "write":
            self._version = receipt.version_after


@final
class ReplyStream:
    """The text of an answer as it comes: iterate over it once, then read `receipt`.

    Leaving it early (`close`, the end of a `with` block) cancels the turn, and nothing of it is kept.
    """

    def __init__(self, response: httpx.Response, key: str, on_end: Callable[[Receipt | None], None]) -> None:
        self.key = key
        """The turn's idempotency key: a stream that broke off can be asked for again under it."""
        self._on_end = on_end
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
            for piece in _pieces(self._response, self._reader):
                yield from self._reader.feed(piece)
            if not self._reader.is_done:
                raise self._reader.interrupted("the server closed it", self.reply.text)
            self._on_end(self.receipt)
        finally:
            self._response.close()


def _pieces(response: httpx.Response, reader: ChatStreamReader | LearnStreamReader) -> Iterator[bytes]:
    try:
        for piece in response.iter_bytes():
            yield piece
            if reader.is_done:
                return
    except httpx.TimeoutException as exc:
        raise TimedOut("the stream stayed silent for too long", request_id=reader.request_id) from exc
    except (httpx.RequestError, httpx.StreamError) as exc:
        text = reader.reply().text if isinstance(reader, ChatStreamReader) else ""
        raise reader.interrupted(str(exc) or type(exc).__name__, text) from exc
