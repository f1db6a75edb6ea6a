"""The synchronous client: sends what `requests` builds, gives back what `answers` reads."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar, final

import httpx

from hope_client import answers, requests
from hope_client.errors import ConnectionFailed, HopeError, TimedOut
from hope_client.objects import Health, Model, SessionInfo, from_json
from hope_client.session import Session

Result = TypeVar("Result")

_CONNECT_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 8.0


def _pause(number: int, asked_seconds: float | None) -> float:
    """Seconds before attempt `number` + 2: doubling, spread so that clients do not come back all at once."""
    doubled = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0**number) * random.uniform(0.75, 1.25)
    return max(doubled, min(asked_seconds or 0.0, _LONGEST_PAUSE_SECONDS))


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
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 600.0,
        *,
        max_retries: int = 2,
        strict: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = requests.normalise_url(base_url)
        self.max_retries = max_retries
        self.strict = strict
        self._http = httpx.Client(
            headers={"User-Agent": "hope-client", **requests.bearer(api_key)},
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
            transport=transport,
            trust_env=not requests.is_loopback(self.base_url),
        )

    def __enter__(self) -> HopeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Streams that still run are cut off, and the server drops their turns."""
        self._http.close()

    def models(self) -> list[Model]:
        """Return the models that the server serves."""
        return answers.read_models(self.send(requests.list_models()))

    def health(self) -> Health:
        """Return whether the server takes turns yet. Raises ConnectionFailed when nothing answers."""
        with self._explained():
            response = self._http.send(self._request(requests.check_ready()))
        return answers.read_health(response.content, response.status_code, response.headers)

    def session(self, id: str | None = None) -> Session:
        """Make the session of that id or find it if it is there; None makes one with an id chosen by the server."""
        return self.open_session(requests.create_session(id))

    def get_session(self, id: str) -> Session:
        """Find the session of that id. Raises SessionNotFound when there is none."""
        return self.open_session(requests.get_session(id))

    def sessions(self, page_size: int = 100) -> Iterator[SessionInfo]:
        """Yield every session of the caller, asked for `page_size` at a time."""
        after: str | None = None
        has_more = True
        while has_more:
            page, has_more = answers.read_sessions(self.send(requests.list_sessions(page_size, after)))
            yield from page
            has_more = has_more and bool(page)
            after = page[-1].id if page else None

    def delete(self, id: str) -> None:
        """Delete the session of that id with everything it learned, also one that the server's store lost."""
        self.send(requests.delete_session(id))

    def import_(self, data: bytes, id: str | None = None) -> Session:
        """Make a session of what `Session.export` gave; None lets the server choose its id. Raises SessionExists."""
        return self.open_session(requests.import_session(data, id))

    def open_session(self, call: requests.Call) -> Session:
        """Send a call that answers with a session, and return that session."""
        return Session(self, from_json(SessionInfo, self.send(call)))

    def send(self, call: requests.Call) -> Any:
        """Send a call and return its JSON. Raises HopeError."""

        def send() -> Any:
            with self._explained():
                response = self._http.send(self._request(call))
            return answers.read_json(response.content, response.status_code, response.headers)

        return self.repeat(call, send)

    def send_for_bytes(self, call: requests.Call) -> bytes:
        """Send a call and return the body of its answer as it is. Raises HopeError."""

        def send() -> bytes:
            with self._explained():
                response = self._http.send(self._request(call))
            if response.status_code != 200:
                raise answers.read_error(response.content, response.status_code, response.headers)
            return response.content

        return self.repeat(call, send)

    def repeat(self, call: requests.Call, attempt: Callable[[], Result]) -> Result:
        """Return what `attempt` returns; where it fails and another attempt may not, wait and make one."""
        for number in range(self.max_retries if call.is_repeatable else 0):
            try:
                return attempt()
            except HopeError as exc:
                if not exc.is_retryable:
                    raise
                time.sleep(_pause(number, exc.retry_after_seconds))
        return attempt()

    def open_stream(self, call: requests.Call) -> httpx.Response:
        """Send a call once and return its answer with the body unread, to be closed by the caller. Raises HopeError."""
        with self._explained():
            response = self._http.send(self._request(call), stream=True)
            if response.status_code == 200:
                return response
            try:
                content = response.read()
            finally:
                response.close()
        raise answers.read_error(content, response.status_code, response.headers)

    def _request(self, call: requests.Call) -> httpx.Request:
        return self._http.build_request(
            call.method, self.base_url + call.path, content=call.body, headers=call.headers, params=call.params
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise ConnectionFailed(
                f"no server answers at {self.base_url} ({exc}); start one with `hope serve`, or give the right address"
            ) from exc
        except httpx.TimeoutException as exc:
            raise TimedOut(f"the server at {self.base_url} stayed silent for too long") from exc
        except httpx.RequestError as exc:
            raise ConnectionFailed(f"the connection to {self.base_url} broke: {exc}") from exc
