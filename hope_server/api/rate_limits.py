"""How much one key may ask for a minute and at once, in each server process: buckets that fill steadily.

A request takes one of its key's requests. Tokens are known only when a turn has ended, so a turn is let in while any
are left, a quarter of its body's bytes are taken as a guess, and the guess is made good at the end: below nothing too,
which the next requests wait out. A client that leaves early pays the guess and the text it got.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hope_server.api.errors import RateLimitExceeded, error_response
from hope_server.api.key_registry import KeyLimits, KeyRecord
from hope_server.api.scopes import OPEN_PATHS
from hope_server.settings import Settings
from hope_server.telemetry import token_account

__all__ = ["Bucket", "RateLimits", "default_limits"]

_BYTES_PER_TOKEN = 4
_MAX_BUCKETS = 4096
_OPEN_RETRY_SECONDS = 1.0


def default_limits(settings: Settings) -> KeyLimits:
    """Return what a key may use that says nothing of its own."""
    return KeyLimits(
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        max_sessions=settings.max_sessions,
        max_stored_bytes=settings.max_stored_bytes,
        max_open_requests=settings.max_open_requests,
    )


class Bucket:
    """Holds up to `limit` units and fills with `limit` units a minute; it may be overdrawn."""

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._at = now

    def level(self, now: float) -> float:
        """Return how much is in it; below zero if it is overdrawn."""
        self._level = min(float(self.limit), self._level + max(0.0, now - self._at) * self.limit / 60)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take `amount` out of it; a negative one puts back."""
        self._level = min(float(self.limit), self.level(now) - amount)

    def seconds_until(self, level: float, now: float) -> float:
        """Return how long it takes to fill up to `level`."""
        return max(0.0, level - self.level(now)) * 60 / self.limit


@dataclass(slots=True)
class _Account:
    """What one key has used lately; None where it has no limit."""

    requests: Bucket | None
    tokens: Bucket | None
    num_open: int = 0

    def is_idle(self, now: float) -> bool:
        buckets = [bucket for bucket in (self.requests, self.tokens) if bucket is not None]
        return self.num_open == 0 and all(bucket.level(now) >= bucket.limit for bucket in buckets)


@dataclass(slots=True)
class _Charge:
    """The tokens of one request (a TokenAccount)."""

    bucket: Bucket
    now: Callable[[], float]
    body_bytes: int = 0
    _guess: float = field(default=0.0)

    def begin(self) -> None:
        """Take a guess at what the turn will read."""
        guess = self.body_bytes / _BYTES_PER_TOKEN
        self.bucket.take(guess, self.now())
        self._guess += guess

    def settle(self, num_tokens: int) -> None:
        """Take what the turn took in the guess's place."""
        self.bucket.take(num_tokens - self._guess, self.now())
        self._guess = 0.0

    def abandon(self, num_tokens: int) -> None:
        """Leave the guess, and take the text that was sent."""
        self.bucket.take(num_tokens, self.now())
        self._guess = 0.0


class RateLimits:
    """Answers 429 to a key that asks for too much, and says in the headers of every /v1 answer what is left."""

    def __init__(self, app: ASGIApp, defaults: KeyLimits, now: Callable[[], float] = time.monotonic) -> None:
        self.app = app
        self._defaults = defaults
        self._now = now
        self._accounts: dict[str, _Account] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        record: KeyRecord = scope["state"]["key"]
        limits = record.limits.over(self._defaults)
        account = self._account(record.id, limits)
        outward = self._with_headers(account, send) if scope["path"].startswith("/v1") else send
        refusal = self._refusal(account, limits)
        if refusal is not None:
            await error_response(refusal)(scope, receive, outward)
            return
        charge = None if account.tokens is None else _Charge(account.tokens, self._now)
        account.num_open += 1
        token = token_account.set(charge)
        try:
            await self.app(scope, receive if charge is None else _counted(receive, charge), outward)
        finally:
            token_account.reset(token)
            account.num_open -= 1

    def _account(self, key_id: str, limits: KeyLimits) -> _Account:
        """Return the account of a key; it begins anew, full, where the key's limits were changed."""
        now = self._now()
        account = self._accounts.get(key_id)
        if account is None:
            if len(self._accounts) >= _MAX_BUCKETS:
                # A full bucket is as good as a new one, so nothing is forgiven.
                self._accounts = {name: each for name, each in self._accounts.items() if not each.is_idle(now)}
            account = self._accounts[key_id] = _Account(None, None)
        account.requests = _resized(account.requests, limits.requests_per_minute or 0, now)
        account.tokens = _resized(account.tokens, limits.tokens_per_minute or 0, now)
        return account

    def _refusal(self, account: _Account, limits: KeyLimits) -> RateLimitExceeded | None:
        """Return why the request must wait; otherwise count it."""
        now = self._now()
        if limits.max_open_requests and account.num_open >= limits.max_open_requests:
            return RateLimitExceeded(f"{limits.max_open_requests:,} open requests", _OPEN_RETRY_SECONDS)
        if account.requests is not None and account.requests.level(now) < 1:
            wait = account.requests.seconds_until(1, now)
            return RateLimitExceeded(f"{account.requests.limit:,} requests a minute", wait)
        if account.tokens is not None and account.tokens.level(now) <= 0:
            wait = account.tokens.seconds_until(1, now)
            return RateLimitExceeded(f"{account.tokens.limit:,} tokens a minute", wait)
        if account.requests is not None:
            account.requests.take(1, now)
        return None

    def _with_headers(self, account: _Account, send: Send) -> Send:
        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, now = MutableHeaders(scope=message), self._now()
                for kind, bucket in (("requests", account.requests), ("tokens", account.tokens)):
                    if bucket is not None:
                        headers[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
                        headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, math.floor(bucket.level(now))))
                        headers[f"x-ratelimit-reset-{kind}"] = _duration(bucket.seconds_until(bucket.limit, now))
            await send(message)

        return send_with_limits


def _resized(bucket: Bucket | None, limit: int, now: float) -> Bucket | None:
    if limit == 0:
        return None
    return bucket if bucket is not None and bucket.limit == limit else Bucket(limit, now)


def _counted(receive: Receive, charge: _Charge) -> Receive:
    async def counted_receive() -> Message:
        message = await receive()
        charge.body_bytes += len(message.get("body", b""))
        return message

    return counted_receive


def _duration(seconds: float) -> str:
    """Return a time as OpenAI writes it: 120ms, 4.5s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds * 10) / 10, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
