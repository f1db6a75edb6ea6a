"""The client that waits: every call returns when it is done. `AsyncHopeClient` has the same verbs, awaited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import final

import httpx

from hope_client.core import ClientCore, Habits
from hope_client.objects import Health, Model, SessionInfo
from hope_client.options import OpenAIClient
from hope_client.session import Session
from hope_client.session_core import SessionCore
from hope_client.transport import DEFAULT_URL, Address, Driver


@final
class HopeClient:
    """A connection to one HOPE Server.

    base_url: with or without a trailing `/v1`.
    timeout: longest silence of the server that is borne, in seconds; a streamed answer is never silent for long.
    max_retries: how often a call that failed is sent again, where that may help. Every turn has a name of its own, so
        the server learns it once however often it is sent. A streamed answer that broke off is not asked for again.
    strict: every turn names the version that this client saw last, so that nothing is done to a session that somebody
        else went on with (VersionMismatch), or whose memory the server's store lost (MemoryRolledBack).
    transport: replaces the network, for tests.

    Raises ValueError for a URL or key that cannot be used. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 600.0,
        *,
        max_retries: int = 2,
        strict: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._address = Address(base_url, api_key, timeout)
        self._core = ClientCore(Habits(max_retries, strict))
        self._driver = Driver(self._address, transport)

    def __enter__(self) -> HopeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """The server's URL, without `/v1`."""
        return self._address.base_url

    def close(self) -> None:
        """Close the connections. Streams that still run are cut off, and the server drops their turns."""
        self._driver.close()

    def models(self) -> list[Model]:
        """Return the models that the server serves."""
        return self._driver.run(self._core.models())

    def health(self) -> Health:
        """Return whether the server takes turns yet. Raises ConnectionFailed when nothing answers."""
        return self._driver.run(self._core.health())

    def session(
        self, id: str | None = None, *, ttl: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> Session:
        """Find the session of that id, or make it; None makes one with an id chosen by the server.

        ttl: seconds after its last turn at which the server deletes it, 0 is never; None leaves that as it is.
        metadata: notes to keep with it; None leaves them as they are.
        """
        return self._session(self._driver.run(self._core.session(id, ttl, metadata)))

    def get_session(self, id: str) -> Session:
        """Find the session of that id. Raises SessionNotFound when there is none."""
        return self._session(self._driver.run(self._core.get_session(id)))

    def sessions(self, page_size: int = 100) -> Iterator[SessionInfo]:
        """Yield every session of the caller, asked for `page_size` at a time."""
        after: str | None = None
        has_more = True
        while has_more:
            page, has_more = self._driver.run(self._core.page(page_size, after))
            yield from page
            has_more = has_more and bool(page)
            after = page[-1].id if page else None

    def delete(self, id: str) -> None:
        """Delete the session of that id with everything it learned, also one that the server's store lost."""
        self._driver.run(self._core.delete(id))

    def import_session(self, data: bytes, id: str | None = None) -> Session:
        """Make a session of what `Session.export` gave; None lets the server choose its id. Raises SessionExists."""
        return self._session(self._driver.run(self._core.import_session(data, id)))

    def openai(self) -> OpenAIClient:
        """Return what the openai client takes to talk to this server: `OpenAI(**hope.openai())`."""
        return self._address.for_openai()

    def _session(self, info: SessionInfo) -> Session:
        return Session(self._driver, SessionCore(self._core.habits, info))
