"""The session store and the keys of its sessions, out of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from hope_memory import StoreError, Vault, open_store
from hope_memory.key_store import KeyStore, SqliteKeyStore
from hope_memory.protocol import SnapshotStore

from hope_server.errors import SettingsError
from hope_server.settings import Settings

_REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "unix")


@runtime_checkable
class HasVault(Protocol):
    """A store that says where its sessions' keys are."""

    vault: Vault


def build_store(settings: Settings) -> SnapshotStore:
    """The store that `settings` name, not opened yet. Raises SettingsError."""
    try:
        store = _store(settings, None)
        if not settings.key_file and not settings.key_store:
            return store
        beside = vault_of(store)
        key_file = Path(settings.key_file) if settings.key_file else beside.key_file
        key_store = _key_store(settings) if settings.key_store else beside.key_store
        return _store(settings, Vault(key_file.absolute(), key_store))
    except (StoreError, ValueError) as exc:
        raise SettingsError(f"--store cannot be used: {exc}") from exc


def vault_of(store: SnapshotStore) -> Vault:
    """Where a store's sessions have their keys."""
    assert isinstance(store, HasVault)
    return store.vault


def _store(settings: Settings, vault: Vault | None) -> SnapshotStore:
    if _scheme(settings.store) not in _REDIS_SCHEMES:
        return open_store(
            settings.store,
            settings.keep_versions,
            settings.max_snapshot_bytes,
            vault=vault,
            session_ttl_seconds=settings.session_ttl_seconds,
        )
    # Imported late: only who uses Redis waits for its client.
    from hope_memory.redis_client import Patience
    from hope_memory.redis_store import RedisOptions, RedisStore

    patience = Patience(settings.store_timeout_seconds, max_connections=settings.store_connections)
    options = RedisOptions(
        prefix=settings.store_prefix,
        session_ttl_seconds=settings.session_ttl_seconds,
        allow_eviction=settings.store_eviction == "allow",
        patience=patience,
    )
    return RedisStore(settings.store, settings.keep_versions, settings.max_snapshot_bytes, vault, options)


def _key_store(settings: Settings) -> KeyStore:
    if _scheme(settings.key_store) not in _REDIS_SCHEMES:
        return SqliteKeyStore(settings.key_store)
    if settings.key_store == settings.store:
        raise ValueError("the key store must not be the session store: a deleted session's key would stay beside it")
    from hope_memory.redis_key_store import RedisKeyStore

    return RedisKeyStore(settings.key_store)


def _scheme(place: str) -> str:
    return place.partition("://")[0].lower() if "://" in place else ""
