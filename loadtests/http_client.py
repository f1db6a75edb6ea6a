"""A small HTTP client that reads a stream line by line as it arrives, and can leave in the middle of it.

It is the standard library's, so that Locust's gevent makes it cooperative; the time that a stream takes is the caller's
to measure, since nothing is read ahead.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_MAX_LINE_BYTES = 1 << 22
# Below the server's own keep-alive, so that a connection is not used while the server closes it.
_IDLE_SECONDS = 10.0
_DATA = b"data: "
_DONE = b"[DONE]"

BROKEN = (OSError, http.client.HTTPException)
"""What a connection that broke raises; it says nothing about what the server did."""


class StreamBroken(http.client.HTTPException):
    """A stream ended before its last event."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer; `body` is None where it is no JSON object."""

    status: int
    retry_after: float | None
    body: dict[str, Any] | None

    @property
    def error_code(self) -> str:
        """The code of the error object, or a word that says that there is none."""
        try:
            return str((self.body or {})["error"]["code"])
        except (KeyError, TypeError):
            return "no error object"


class Client:
    """One connection to the server, kept open between requests; not for use by two at once."""

    def __init__(self, url: str, api_key: str | None = None, silence_seconds: float = 120.0) -> None:
        """silence_seconds: how long to wait for the next byte."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is {url!r}; give one that begins with http:// or https://")
        self._parts = parts
        self._silence_seconds = silence_seconds
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._idle: http.client.HTTPConnection | None = None
        self._idle_since = 0.0

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Send a request and return its whole answer, whatever its status. Raises what BROKEN lists."""
        with self.open(method, path, body) as response:
            return whole(response)

    @contextmanager
    def open(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; the block reads its answer. A block that leaves before the end closes the connection."""
        connection = self._connection()
        keeps = False
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._parts.path.rstrip("/") + path, data, {**self._headers, **(headers or {})})
            response = connection.getresponse()
            yield response
            keeps = response.isclosed() and not response.will_close
        finally:
            if keeps:
                self._idle, self._idle_since = connection, time.monotonic()
            else:
                connection.close()

    def send_and_leave(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
        """Send a POST and close the connection without waiting for its answer."""
        connection = self._connection()
        with suppress(*BROKEN):
            connection.request(
                "POST", self._parts.path.rstrip("/") + path, json.dumps(body).encode(), {**self._headers, **headers}
            )
        connection.close()

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _connection(self) -> http.client.HTTPConnection:
        idle, self._idle = self._idle, None
        if idle is not None:
            if time.monotonic() - self._idle_since < _IDLE_SECONDS:
                return idle
            idle.close()
        made = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return made(str(self._parts.hostname), self._parts.port, timeout=self._silence_seconds)


def whole(response: http.client.HTTPResponse) -> Reply:
    """Read an answer to its end."""
    data = response.read()
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    return Reply(response.status, retry_after(response), body if isinstance(body, dict) else None)


def retry_after(response: http.client.HTTPResponse) -> float | None:
    """Return the seconds of a Retry-After header; None where there is none, or no number."""
    try:
        return float(response.headers["Retry-After"])
    except (TypeError, ValueError):
        return None


def sse_objects(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the JSON object of each event as it arrives, up to [DONE]. Raises StreamBroken where that does not come.

    An object with `error` is the last one of its stream, and is yielded too.
    """
    while line := response.readline(_MAX_LINE_BYTES):
        if not line.startswith(_DATA):
            continue
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            # The chunk that ends the body: read, the connection can be used again.
            response.read()
            return
        found = json.loads(data)
        yield found
        if "error" in found:
            return
    raise StreamBroken("the stream ended early")
