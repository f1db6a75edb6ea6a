"""The client of asyncio programs: the verbs of `HopeClient`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import final

import httpx

from hope_client.async_session import AsyncSession
from hope_client.core import ClientCore, Habits
from hope_client.objects import Health, Model, SessionInfo
from hope_client.options import OpenAIClient
from hope_client.session_core import SessionCore
from hope_client.transport import DEFAULT_URL, Address, AsyncDriver


@final
class AsyncHopeClient:
    """A connection to one HOPE Server; parameters and methods are those of `HopeClient`, awaited."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 600.0,
        *,
        max_retries: int = 2,
        strict: bool = False,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._address = Address(base_url, api_key, timeout)
        self._core = ClientCore(Habits(max_retries, strict))
        self._driver = AsyncDriver(self._address, transport)

    async def __aenter__(self) -> AsyncHopeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def base_url(self) -> str:
        """See `HopeClient.base_url`."""
        return self._address.base_url

    async def close(self) -> None:
        """See `HopeClient.close`."""
        await self._driver.close()

    async def models(self) -> list[Model]:
        """See `HopeClient.models`."""
        return await self._driver.run(self._core.models())

    async def health(self) -> Health:
        """See `HopeClient.health`."""
        return await self._driver.run(self._core.health())

    async def session(
        self, id: str | None = None, *, ttl: float | None = None, metadata: Mapping[str, str] | None = None
    ) -> AsyncSession:
        """See `HopeClient.session`."""
        return self._session(await self._driver.run(self._core.session(id, ttl, metadata)))

    async def get_session(self, id: str) -> AsyncSession:
        """See `HopeClient.get_session`."""
        return self._session(await self._driver.run(self._core.get_session(id)))

    async def sessions(self, page_size: int = 100) -> AsyncIterator[SessionInfo]:
        """See `HopeClient.sessions`."""
        after: str | None = None
        has_more = True
        while has_more:
            page, has_more = await self._driver.run(self._core.page(page_size, after))
            for each in page:
                yield each
            has_more = has_more and bool(page)
            after = page[-1].id if page else None

    async def delete(self, id: str) -> None:
        """See `HopeClient.delete`."""
        await self._driver.run(self._core.delete(id))

    async def import_session(self, data: bytes, id: str | None = None) -> AsyncSession:
        """See `HopeClient.import_session`."""
        return self._session(await self._driver.run(self._core.import_session(data, id)))

    def openai(self) -> OpenAIClient:
        """See `HopeClient.openai`."""
        return self._address.for_openai()

    def _session(self, info: SessionInfo) -> AsyncSession:
        return AsyncSession(self._driver, SessionCore(self._core.habits, info))
