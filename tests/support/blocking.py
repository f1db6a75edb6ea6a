"""Lets a test drive the asynchronous client with the lines that drive the plain one, by awaiting for them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class Blocking:
    """Stands for an object of hope_client whose methods are awaited, entered and iterated over asynchronously."""

    def __init__(self, inner: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not inspect.ismethod(value):
            return value
        return lambda *args, **options: self._taken(value(*args, **options))

    def __enter__(self) -> Any:
        return self._taken(self._inner.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> Any:
        return self._taken(self._inner.__aexit__(kind, value, traceback))

    def __iter__(self) -> Iterator[Any]:
        return self._walk(self._inner.__aiter__())

    def _walk(self, found: Any) -> Iterator[Any]:
        while True:
            try:
                each = self._loop.run_until_complete(anext(found))
            except StopAsyncIteration:
                return
            yield each

    def _taken(self, result: Any) -> Any:
        if inspect.isasyncgen(result):
            return self._walk(result)
        if inspect.isawaitable(result):
            result = self._loop.run_until_complete(_await(result))
        is_asynchronous = type(result).__module__.startswith("hope_client.async") or hasattr(result, "__aenter__")
        return Blocking(result, self._loop) if is_asynchronous else result


async def _await(result: Any) -> Any:
    return await result
