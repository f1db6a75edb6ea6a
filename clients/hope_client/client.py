"""The synchronous client: sends what `requests` builds, gives back what `answers` reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, final

import httpx

from hope_client import answers, requests
from hope_client.errors import ConnectionFailed, TimedOut
from hope_client.objects import Health, Model, SessionInfo, from_json
from hope_client.session import Session

_CONNECT_SECONDS = 5.0


@final
class HopeClient:
    """A connection to one HOPE Server.

    base_url: with or without a trailing `/v1`.
    timeout: longest silence of the server that is borne, in seconds; a streamed answer is never silent for long.
    transport: replaces the network, for tests.

    Raises ValueError for a URL or key that cannot be used. Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 600.0,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.base_url = requests.normalise_url(base_url)
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

    def open_session(self, call: requests.Call) -> Session:
        """Send a call that answers with a session, and return that session."""
        return Session(self, from_json(SessionInfo, self.send(call)))

    def send(self, call: requests.Call) -> Any:
        """Send a call and return its JSON. Raises HopeError."""
        with self._explained():
            response = self._http.send(self._request(call))
        return answers.read_json(response.content, response.status_code, response.headers)

    def open_stream(self, call: requests.Call) -> httpx.Response:
        """Send a call and return its answer with the body unread, to be closed by the caller. Raises HopeError."""
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
