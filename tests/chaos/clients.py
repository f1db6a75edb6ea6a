"""The clients of a chaos run: two that take a turn until a server acknowledges it, and writers that use them.

`KeyedClient` sends an Idempotency-Key and tries until it has the answer; `StockClient` is OpenAI's client as it comes,
with its two silent retries and no key, behind a user who goes on with the next message when the answer failed.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any, Protocol

import httpx
import openai

from tests.chaos.turns import Answer, Journal, Turn

TRY_SECONDS = 5.0
TURN_SECONDS = 25.0
_PAUSE_SECONDS = (0.02, 0.3)
_MAX_TOKENS = 2
_RETRY_STATUS = {408, 409, 425, 429, 502, 503, 504}
# What a store that lost nothing must never give a reason for, whatever the status.
ALARMS = {
    "memory_rolled_back",
    "memory_evicted",
    "state_corrupt",
    "state_incompatible",
    "state_too_large",
    "store_full",
    "version_mismatch",
    "idempotency_key_reused",
    "answer_not_stored",
    "session_not_found",
    "internal_error",
}


class TryAgainError(Exception):
    """The try failed in a way that says nothing about the turn: it may have been learned or not."""


class SurpriseError(Exception):
    """The server answered with what no fault of the run explains."""


class Client(Protocol):
    """Takes one turn as far as it will go."""

    async def take(self, turn: Turn, messages: Sequence[dict[str, str]]) -> None:
        """Send the turn; the answers are left in `turn`. Raises TimeoutError where it is given up, SurpriseError."""

    async def close(self) -> None:
        """Close its connections."""


def judge(status: int | None, code: str, journal: Journal) -> Exception:
    """What an error answer means to a client: try again, or a surprise. A stream's error event has no status."""
    what = f"in a stream: {code}" if status is None else f"{status} {code}"
    journal.refusals[what] += 1
    if code in ALARMS or not (status is None or status in _RETRY_STATUS):
        return SurpriseError(what)
    return TryAgainError(what)


class KeyedClient:
    """Speaks HTTP itself; sends an Idempotency-Key, and sometimes the same request to two servers at once."""

    def __init__(self, urls: Sequence[str], api_key: str, journal: Journal, chance: random.Random) -> None:
        self._urls = list(urls)
        self._journal = journal
        self._chance = chance
        headers = {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(headers=headers, timeout=TRY_SECONDS)

    async def take(self, turn: Turn, messages: Sequence[dict[str, str]]) -> None:
        """As `Client.take`."""
        assert turn.key is not None
        headers = {"X-Session-ID": turn.session, "Idempotency-Key": turn.key}
        if self._chance.random() < 0.1:
            headers["X-Memory-Durability"] = "fsync"
        body = {"messages": list(messages), "max_tokens": _MAX_TOKENS, "temperature": 0}
        body["stream"] = self._chance.random() < 0.5
        num_at_once = 2 if self._chance.random() < 0.05 else 1
        async with asyncio.timeout(TURN_SECONDS):
            while not turn.is_acked:
                urls = self._chance.sample(self._urls, num_at_once)
                turn.num_tries += num_at_once
                self._journal.counts["sent to two servers at once"] += num_at_once - 1
                tries = [self._try(url, headers, body) for url in urls]
                for outcome in await asyncio.gather(*tries, return_exceptions=True):
                    if isinstance(outcome, Answer):
                        turn.answers.append(outcome)
                    elif not isinstance(outcome, TryAgainError):
                        raise outcome
                if not turn.is_acked:
                    await asyncio.sleep(self._chance.uniform(*_PAUSE_SECONDS))

    async def close(self) -> None:
        """As `Client.close`."""
        await self._http.aclose()

    async def _try(self, url: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        path = f"{url}/v1/chat/completions"
        try:
            async with (
                asyncio.timeout(TRY_SECONDS),
                self._http.stream("POST", path, json=body, headers=headers) as response,
            ):
                if response.status_code != 200:
                    await response.aread()
                    raise judge(response.status_code, _code(response), self._journal)
                if body["stream"]:
                    return await self._streamed(response)
                await response.aread()
                whole = response.json()
                text = whole["choices"][0]["message"]["content"]
                return Answer(text, whole["memory"])
        except (httpx.HTTPError, TimeoutError) as exc:
            raise TryAgainError(type(exc).__name__) from exc

    async def _streamed(self, response: httpx.Response) -> Answer:
        text, receipt = "", None
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                if receipt is None:
                    raise SurpriseError("a stream was done without a receipt")
                return Answer(text, receipt)
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise judge(None, str(event["error"]["code"]), self._journal)
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
            receipt = event.get("memory") or receipt
        raise TryAgainError("the stream ended early")


class StockClient:
    """OpenAI's client, unchanged. It believes whatever it does not raise an error for."""

    def __init__(self, urls: Sequence[str], api_key: str, journal: Journal, chance: random.Random) -> None:
        self._chance = chance
        self._journal = journal
        self._clients = [
            openai.AsyncOpenAI(api_key=api_key, base_url=f"{url}/v1", timeout=TRY_SECONDS, http_client=self._http())
            for url in urls
        ]

    async def take(self, turn: Turn, messages: Sequence[dict[str, str]]) -> None:
        """As `Client.take`; OpenAI's client tries three times in all, and what it gives up is given up."""
        turn.num_tries += 1
        try:
            async with asyncio.timeout(TURN_SECONDS):
                turn.answers.append(await self._ask(turn.session, messages))
        except openai.APIStatusError as exc:
            error = judge(exc.status_code, str(exc.code), self._journal)
            if isinstance(error, SurpriseError):
                raise error from exc
            raise TimeoutError from exc
        except openai.APIError as exc:
            if exc.code is not None and isinstance(judge(None, str(exc.code), self._journal), SurpriseError):
                raise SurpriseError(f"in a stream: {exc.code}") from exc
            raise TimeoutError from exc

    async def close(self) -> None:
        """As `Client.close`."""
        for client in self._clients:
            await client.close()

    def _http(self) -> Any:
        async def count(request: Any) -> None:
            self._journal.counts["silent retries of OpenAI's client"] += request.headers.get(
                "x-stainless-retry-count", "0"
            ) not in ("0", "")

        return openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})

    async def _ask(self, session: str, messages: Sequence[dict[str, str]]) -> Answer:
        client = self._chance.choice(self._clients)
        wanted: dict[str, Any] = {"model": "toy", "messages": messages, "max_tokens": _MAX_TOKENS, "temperature": 0}
        wanted["extra_headers"] = {"X-Session-ID": session}
        if self._chance.random() < 0.5:
            whole = await client.chat.completions.create(**wanted)
            return Answer(whole.choices[0].message.content or "", whole.memory)
        text, receipt = "", None
        # The timeout of OpenAI's client is for a silence, not for the whole answer; the turn's own ends a longer one.
        async with await client.chat.completions.create(stream=True, **wanted) as stream:
            async for chunk in stream:
                for choice in chunk.choices:
                    text += choice.delta.content or ""
                receipt = getattr(chunk, "memory", None) or receipt
        if receipt is None:
            # Another client than ours would have believed this answer, so it counts.
            self._journal.surprises.append("a stream ended as if it were whole, without a receipt")
            raise openai.APIError("no receipt", request=stream.response.request, body=None)
        return Answer(text, receipt)


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "no error object"
