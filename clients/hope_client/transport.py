"""Runs flows on httpx, in place or awaited, which is all that the two drivers differ in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx

from hope_client import requests
from hope_client.answers import Answer, read_error
from hope_client.errors import ConnectionFailed, HopeError, TimedOut
from hope_client.flow import Flow, Open, Send, Step, Study, T
from hope_client.options import OpenAIClient
from hope_client.streams import LearnStreamReader, StreamReader

DEFAULT_URL = "http://127.0.0.1:8000"

_CONNECT_SECONDS = 5.0


class _HttpOptions(TypedDict):
    headers: Mapping[str, str]
    timeout: httpx.Timeout
    trust_env: bool


@dataclass(frozen=True)
class Address:
    """Where a server is and how to talk to it, checked. Raises ValueError for a URL or key that cannot be used."""

    base_url: str
    api_key: str | None
    timeout: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "base_url", requests.normalise_url(self.base_url))
        requests.bearer(self.api_key)

    @property
    def http_options(self) -> _HttpOptions:
        """What httpx's clients are made with."""
        return {
            "headers": {"User-Agent": "hope-client", **requests.bearer(self.api_key)},
            "timeout": httpx.Timeout(self.timeout, connect=min(self.timeout, _CONNECT_SECONDS)),
            "trust_env": not requests.is_loopback(self.base_url),
        }

    def for_openai(self) -> OpenAIClient:
        """Return what the openai client takes; it insists on a key, also where the server wants none."""
        return {"base_url": f"{self.base_url}/v1", "api_key": self.api_key or "none"}

    def request(self, http: httpx.Client | httpx.AsyncClient, call: requests.Call) -> httpx.Request:
        """Return a call as httpx's request."""
        return http.build_request(
            call.method, self.base_url + call.path, content=call.body, headers=call.headers, params=call.params
        )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Raise httpx's errors of this block as HopeErrors that say what to do."""
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


@contextmanager
def _broken(reader: StreamReader) -> Iterator[None]:
    """Raise httpx's errors of a block that reads a stream as HopeErrors."""
    try:
        yield
    except httpx.TimeoutException as exc:
        raise TimedOut("the stream stayed silent for too long", request_id=reader.request_id) from exc
    except (httpx.RequestError, httpx.StreamError) as exc:
        raise reader.interrupted(str(exc) or type(exc).__name__) from exc


def _answer(response: httpx.Response) -> Answer:
    return Answer(response.content, response.status_code, response.headers)


def _learn_reader(step: Study, response: httpx.Response) -> LearnStreamReader:
    return LearnStreamReader(response.headers.get("x-request-id"), step.on_progress)


class Driver:
    """Runs flows and waits for each step."""

    def __init__(self, address: Address, transport: httpx.BaseTransport | None) -> None:
        self._address = address
        self._http = httpx.Client(transport=transport, **address.http_options)

    def run(self, flow: Flow[T]) -> T:
        """Return what the flow returns. Raises what it raises."""
        try:
            step = next(flow)
            while True:
                try:
                    result = self._do(step)
                except HopeError as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            value: T = done.value
            return value
        finally:
            flow.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _do(self, step: Step) -> Any:
        if isinstance(step, Send):
            with self._address.explained():
                return _answer(self._http.send(self._address.request(self._http, step.call)))
        if isinstance(step, Open):
            return self._open(step.call)
        if isinstance(step, Study):
            return self._study(step)
        return time.sleep(step.seconds)

    def _open(self, call: requests.Call) -> httpx.Response:
        with self._address.explained():
            response = self._http.send(self._address.request(self._http, call), stream=True)
            if response.status_code == 200:
                return response
            try:
                response.read()
            finally:
                response.close()
        raise read_error(_answer(response))

    def _study(self, step: Study) -> Any:
        response = self._open(step.call)
        reader = _learn_reader(step, response)
        try:
            for piece in pieces(response, reader):
                reader.feed(piece)
        finally:
            response.close()
        return reader.result()


def pieces(response: httpx.Response, reader: StreamReader) -> Iterator[bytes]:
    """Yield a body's bytes as they come, until its end or until the reader has seen that of its stream."""
    with _broken(reader):
        for piece in response.iter_bytes():
            yield piece
            if reader.is_done:
                return


class AsyncDriver:
    """Runs flows and awaits each step, on asyncio."""

    def __init__(self, address: Address, transport: httpx.AsyncBaseTransport | None) -> None:
        self._address = address
        self._http = httpx.AsyncClient(transport=transport, **address.http_options)

    async def run(self, flow: Flow[T]) -> T:
        """Return what the flow returns. Raises what it raises."""
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._do(step)
                except HopeError as exc:
                    step = flow.throw(exc)
                else:
                    step = flow.send(result)
        except StopIteration as done:
            value: T = done.value
            return value
        finally:
            flow.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Send):
            with self._address.explained():
                return _answer(await self._http.send(self._address.request(self._http, step.call)))
        if isinstance(step, Open):
            return await self._open(step.call)
        if isinstance(step, Study):
            return await self._study(step)
        return await asyncio.sleep(step.seconds)

    async def _open(self, call: requests.Call) -> httpx.Response:
        with self._address.explained():
            response = await self._http.send(self._address.request(self._http, call), stream=True)
            if response.status_code == 200:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        raise read_error(_answer(response))

    async def _study(self, step: Study) -> Any:
        response = await self._open(step.call)
        reader = _learn_reader(step, response)
        try:
            async for piece in async_pieces(response, reader):
                reader.feed(piece)
        finally:
            await response.aclose()
        return reader.result()


async def async_pieces(response: httpx.Response, reader: StreamReader) -> AsyncGenerator[bytes, None]:
    """Yield a body's bytes as they come, until its end or until the reader has seen that of its stream."""
    with _broken(reader):
        async for piece in response.aiter_bytes():
            yield piece
            if reader.is_done:
                return
