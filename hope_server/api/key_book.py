"""The keys that a running server knows: those of its environment and those of a file that is looked at again and again.

The file is the operator's word. A file that is gone or damaged opens nothing: a key that cannot be looked up could be
one that was revoked.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hope_server.api.key_registry import KeyRecord, KeyRegistry, hash_of, tenant_of_hash
from hope_server.api.scopes import ALL_SCOPES, ANY_KEY
from hope_server.errors import StartupError
from hope_server.settings import Settings
from hope_server.telemetry import log_event

__all__ = ["OPEN_TENANT", "KeyBook", "tenant_of_key"]

OPEN_TENANT = "default"
"""The one tenant of a server without keys."""

# How often a file that cannot be used is looked at again.
_RETRY_SECONDS = 0.5
_ANYONE = KeyRecord(id="open", name="open", hash="0" * 64, tenant=OPEN_TENANT, scopes=ALL_SCOPES, created=0)


def tenant_of_key(key: str) -> str:
    """Return the tenant of a key of the environment: the first 16 hex digits of its SHA-256, so no key is stored."""
    return tenant_of_hash(hash_of(key.encode()))


class KeyBook:
    """Finds the record of a given key."""

    def __init__(
        self, api_keys: Sequence[str] = (), registry: KeyRegistry | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """Read the file of `registry`. Raises StartupError if there is one that cannot be used."""
        self._now = now
        self._registry = registry
        # Records are found by a hash that is keyed anew in each process: how long a look-up takes tells nothing.
        self._salt = secrets.token_bytes(32)
        self._fixed = [_of_environment(number, key) for number, key in enumerate(dict.fromkeys(api_keys), 1)]
        self._signature: tuple[int, ...] | None = None
        self._retry_at = 0.0
        self._by_place: dict[bytes, KeyRecord] = {}
        self._by_id: dict[str, KeyRecord] = {}
        if registry is not None:
            self._signature = registry.signature()
        self._take(registry.read() if registry is not None else ())

    @classmethod
    def of_settings(cls, settings: Settings) -> KeyBook:
        """Return the book of a server. Raises StartupError."""
        registry = KeyRegistry(Path(settings.api_key_file)) if settings.api_key_file else None
        return cls(settings.api_keys, registry)

    @property
    def is_open(self) -> bool:
        """Whether the server asks for no key: none is set and no file is named, be it empty or missing."""
        return not self._fixed and self._registry is None

    @property
    def num_keys(self) -> int:
        """How many keys open something now."""
        return sum(record.is_valid(self._now()) for record in self._by_id.values())

    def find(self, given: bytes | None) -> KeyRecord | None:
        """Return the record of a key, None if it opens nothing. A server without keys knows one record for all."""
        if self.is_open:
            return _ANYONE
        self.refresh()
        if not given:
            return None
        found = hash_of(given)
        record = self._by_place.get(self._place(found))
        if record is None or not hmac.compare_digest(record.hash, found):
            return None
        return record if record.is_valid(self._now()) else None

    def is_still_good(self, record: KeyRecord, scope: str) -> bool:
        """Whether a record that was found before still opens `scope` for the same tenant."""
        if record is _ANYONE:
            return True
        self.refresh()
        current = self._by_id.get(record.id)
        if current is None or current.hash != record.hash or current.tenant != record.tenant:
            return False
        return current.is_valid(self._now()) and (scope == ANY_KEY or scope in current.scopes)

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        if self._registry is None or time.monotonic() < self._retry_at:
            return
        try:
            signature = self._registry.signature()
            if signature == self._signature:
                return
            # Taken before the read: a change in between is read once more, never missed.
            self._signature = signature
            self._take(self._registry.read())
        except StartupError as exc:
            if len(self._by_id) > len(self._fixed) or self._signature is not None:
                log_event("api_keys_unreadable", {"reason": exc.message}, logging.ERROR)
            self._signature = None
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            self._take(())
        else:
            log_event("api_keys_read", {"keys": self.num_keys})

    def _take(self, records: Sequence[KeyRecord]) -> None:
        every = [*self._fixed, *records]
        self._by_id = {record.id: record for record in every}
        self._by_place = {self._place(record.hash): record for record in every}

    def _place(self, key_hash: str) -> bytes:
        return hashlib.blake2b(key_hash.encode(), key=self._salt, digest_size=16).digest()


def _of_environment(number: int, key: str) -> KeyRecord:
    found = hash_of(key.encode())
    name = f"env-{number}"
    return KeyRecord(id=name, name=name, hash=found, tenant=tenant_of_hash(found), scopes=ALL_SCOPES, created=0)
