"""Where wrapped data keys are kept, apart from the sessions: destroying a record makes its session unreadable.

A record is small opaque bytes at a place (a keyed hash of the session's name). Every change is a compare-and-swap.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from hope_memory.errors import KeysUnavailable, StoreError
from hope_memory.sqlite_file import Job, Layout, SqliteFile

T = TypeVar("T")

# A damaged file can hold a value of another type, which must still be found damaged and be removed.
_BYTES = "CAST(record AS BLOB)"

_LAYOUT = Layout(
    what="key store",
    application_id=0x484F504B,
    schema=1,
    statements="CREATE TABLE keys (place TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID",
)


@runtime_checkable
class KeyStore(Protocol):
    """Wrapped data keys by place. Every method may raise KeysUnavailable; none blocks the loop."""

    async def open(self) -> None:
        """Open or create it; nothing happens where it is open."""

    async def close(self) -> None:
        """Close it; closing twice is fine."""

    async def get(self, places: Sequence[str]) -> list[bytes | None]:
        """Return the record at each place, None where there is none."""

    async def put(self, place: str, record: bytes, expected: bytes | None) -> bool:
        """Store a record, durably, if the one there now is `expected` (None: none); whether it was stored."""

    async def destroy(self, place: str, expected: bytes) -> bool:
        """Remove a record if it is the expected one, and every trace of it that this store controls."""

    async def places(self, after: str, limit: int) -> list[str]:
        """Return up to `limit` places in ascending order, beyond `after`."""


class SqliteKeyStore:
    """A `KeyStore` in a SQLite file of its own, made where missing; safe for several processes of one machine."""

    def __init__(self, path: str | os.PathLike[str], busy_seconds: float = 5.0) -> None:
        self._file = SqliteFile(path, _LAYOUT, busy_seconds)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    async def open(self) -> None:
        """As `KeyStore.open`."""
        try:
            await self._file.open()
        except StoreError as exc:
            raise KeysUnavailable(f"the key store cannot be opened: {exc}") from exc

    async def close(self) -> None:
        """As `KeyStore.close`."""
        await self._file.close()

    async def get(self, places: Sequence[str]) -> list[bytes | None]:
        """As `KeyStore.get`."""

        def get(db: sqlite3.Connection) -> list[bytes | None]:
            rows = [db.execute(f"SELECT {_BYTES} FROM keys WHERE place = ?", (place,)).fetchone() for place in places]
            return [None if row is None else row[0] for row in rows]

        return await self._call(get)

    async def put(self, place: str, record: bytes, expected: bytes | None) -> bool:
        """As `KeyStore.put`."""

        def put(db: sqlite3.Connection) -> bool:
            if expected is None:
                sql = "INSERT OR IGNORE INTO keys (record, place) VALUES (?, ?)"
                return db.execute(sql, (record, place)).rowcount == 1
            sql = f"UPDATE keys SET record = ? WHERE place = ? AND {_BYTES} = ?"
            return db.execute(sql, (record, place, expected)).rowcount == 1

        return await self._call(put)

    async def destroy(self, place: str, expected: bytes) -> bool:
        """As `KeyStore.destroy`; the freed bytes are overwritten and the log is emptied."""

        def destroy(db: sqlite3.Connection) -> bool:
            sql = f"DELETE FROM keys WHERE place = ? AND {_BYTES} = ?"
            return db.execute(sql, (place, expected)).rowcount == 1

        is_gone = await self._call(destroy)
        await self._file.empty_log()
        return is_gone

    async def places(self, after: str, limit: int) -> list[str]:
        """As `KeyStore.places`."""

        def places(db: sqlite3.Connection) -> list[str]:
            sql = "SELECT place FROM keys WHERE place > ? ORDER BY place LIMIT ?"
            return [str(row[0]) for row in db.execute(sql, (after, limit))]

        return await self._call(places)

    async def _call(self, job: Job[T]) -> T:
        try:
            return await self._file.call(job)
        except StoreError as exc:
            raise KeysUnavailable(f"the key store cannot be used: {exc}") from exc
