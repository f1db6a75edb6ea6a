"""Data keys of sessions: found, made, forked, re-wrapped and destroyed, through a key ring and a key store.

Each session has keys of its own; the key file's key wraps them; the key store keeps the wrapped record apart from the
session store. So a session that is deleted is unreadable in every copy and backup of the session store.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]

from hope_memory.errors import KeysUnavailable
from hope_memory.key_file import KeyRing
from hope_memory.key_store import KeyStore, SqliteKeyStore
from hope_memory.protocol import SessionId
from hope_memory.sealing import KEY_BYTES, KEY_ID_BYTES, DataKeys

MAX_KEYS = 4096
_FORMAT = 1
_MAX_RECORD_BYTES = 256 << 10


class KeysChanged(KeysUnavailable):
    """A rival made or deleted the session meanwhile; who looks again sees what there is now."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A session's keys as the key store holds them.

    is_live: the session exists in the session store. A record that is not was made just before the session was; one
        that is, without a session, tells that the session store lost it.
    stored: the bytes in the key store, for the next compare-and-swap.
    """

    place: str
    keys: DataKeys
    is_live: bool
    stored: bytes


class Vault:
    """Keys of the sessions of one deployment. Methods raise KeysUnavailable.

    A store opens its vault and closes it. made_key_file: `open` found no key file and made one.
    """

    def __init__(self, key_file: Path, key_store: KeyStore) -> None:
        self.key_file = key_file
        self.key_store = key_store
        self._ring: KeyRing | None = None
        self._stamp: tuple[int, int] | None = None
        self.made_key_file = False

    @classmethod
    def beside(cls, store: Path) -> Vault:
        """The vault of a store that has none named: for `sessions.db` that is `sessions.key` and `sessions.keys.db`."""
        stem = store.name.removesuffix(".db")
        return cls(store.with_name(f"{stem}.key"), SqliteKeyStore(store.with_name(f"{stem}.keys.db")))

    async def open(self) -> None:
        """Open the key store and read the key file, which is made only where both are missing."""
        await self.key_store.open()
        stamp = _stamp(self.key_file)
        try:
            # In this order: who stores a first record has made the key file before.
            some = await self.key_store.places("", 1)
            if not some:
                ring, made = KeyRing.open(self.key_file)
            elif self.key_file.exists():
                ring, made = KeyRing.load(self.key_file), False
                _check_key(ring, (await self.key_store.get(some))[0], self.key_file)
            else:
                raise KeysUnavailable(
                    f"the key store has keys but the key file {self.key_file} is missing; restore it from its copy"
                )
        except BaseException:
            await self.key_store.close()
            raise
        self._ring, self._stamp = ring, stamp
        self.made_key_file = self.made_key_file or made

    async def close(self) -> None:
        """Close the key store."""
        await self.key_store.close()

    @property
    def ring(self) -> KeyRing:
        """The key ring, read again where the key file was replaced: a key can be rotated under running servers."""
        if self._ring is None:
            raise KeysUnavailable(f"the key file {self.key_file} is not open")
        stamp = _stamp(self.key_file)
        if stamp != self._stamp:
            # A file that is gone, half edited or of another store changes nothing until it is needed to start again.
            with suppress(KeysUnavailable):
                ring = KeyRing.load(self.key_file)
                if ring.names == self._ring.names:
                    self._ring, self._stamp = ring, stamp
        return self._ring

    def place(self, session: SessionId) -> str:
        """The keyed hash that stands for a session, 32 hex digits."""
        return self.ring.place("session", session.tenant, session.name)

    def mark(self) -> str:
        """What a store notes of its key file: with another one, its sessions would not be found."""
        return self.ring.place("store")

    def tenant_place(self, tenant: str) -> str:
        """The keyed hash that stands for a tenant, 32 hex digits."""
        return self.ring.place("tenant", tenant)

    def request_place(self, session: SessionId, request_id: str) -> str:
        """The keyed hash that stands for a request of a session, 32 hex digits."""
        return self.ring.place("request", session.tenant, session.name, request_id)

    async def find(self, *places: str) -> list[KeyRecord | None]:
        """The key record at each place, None where there is none."""
        stored = await self.key_store.get(places)
        return [None if data is None else self._decode(place, data) for place, data in zip(places, stored, strict=True)]

    async def find_readable(self, *places: str) -> list[KeyRecord | None]:
        """As `find`, and None also for a record that is damaged or wrapped with a key that is gone."""
        stored = await self.key_store.get(places)
        found: list[KeyRecord | None] = []
        for place, data in zip(places, stored, strict=True):
            try:
                found.append(None if data is None else self._decode(place, data))
            except KeysUnavailable:
                found.append(None)
        return found

    async def admit(self, place: str) -> KeyRecord:
        """The key record at a place, made (not live) where missing."""
        for _ in range(8):
            (found,) = await self.find(place)
            if found is not None:
                return found
            made = self._encode(place, DataKeys.generate(), False)
            if await self.key_store.put(place, made.stored, None):
                return made
        raise KeysChanged("the key store keeps changing; try again")

    async def mark_live(self, record: KeyRecord) -> KeyRecord:
        """Note that the record's session exists."""
        if record.is_live:
            return record
        live = self._encode(record.place, record.keys, True)
        if await self.key_store.put(record.place, live.stored, record.stored):
            return live
        return await self._again(record)

    async def add_key(self, record: KeyRecord) -> KeyRecord:
        """Give a session a new key to seal with, so that a fork cannot read what it writes from now on."""
        for _ in range(8):
            if len(record.keys.keys) >= MAX_KEYS:
                raise KeysUnavailable(f"the session has {MAX_KEYS:,} keys, one for each fork that it went on after")
            newer = self._encode(record.place, record.keys.with_new_key(), record.is_live)
            if await self.key_store.put(record.place, newer.stored, record.stored):
                return newer
            record = await self._again(record)
        raise KeysChanged("the key store keeps changing; try again")

    async def inherit(self, source: KeyRecord, place: str, last: bytes | None = None) -> KeyRecord:
        """Make (not live) the key record of a fork: the source's keys to read with and one of its own.

        last: id of the newest key of the source that the fork may read with; None is the newest of all.
        Takes the place of a record that is not live; raises KeysUnavailable if a session has it.
        """
        return await self._claim(place, source.keys.inherited(last))

    async def renew(self, place: str) -> KeyRecord:
        """Make new keys (not live) at a place, also where a record is that is not live. Raises KeysUnavailable."""
        return await self._claim(place, DataKeys.generate())

    async def withdraw(self, record: KeyRecord) -> None:
        """Remove a record that was made for a session which was not, unless it is in use by now."""
        await self.key_store.destroy(record.place, record.stored)

    async def destroy(self, place: str, birth: str) -> bool:
        """Remove the keys of an incarnation of a session, for good; whether they were there."""
        for _ in range(8):
            (found,) = await self.find(place)
            if found is None or found.keys.birth != birth:
                return False
            if await self.key_store.destroy(place, found.stored):
                return True
        raise KeysChanged("the key store keeps changing; try again")

    async def erase(self, place: str) -> bool:
        """Remove whatever record is at a place, readable or not; whether there was one."""
        for _ in range(8):
            (stored,) = await self.key_store.get([place])
            if stored is None:
                return False
            if await self.key_store.destroy(place, stored):
                return True
        raise KeysChanged("the key store keeps changing; try again")

    async def rotate(self, settle_seconds: float = 1.0) -> int:
        """Replace the key that wraps: add one to the key file, rewrap every record, remove the older ones.

        settle_seconds: how long running servers may take from reading the key file to storing what they wrapped.
        Returns how many records were wrapped anew. Cut short, it leaves a key file that has all keys in use.
        """
        self.add_wrapping_key()
        await asyncio.sleep(settle_seconds)
        return await self.prune()

    def add_wrapping_key(self) -> str:
        """Add a key to the key file, which wraps from now on; returns its id."""
        ring = self.ring.with_new_key()
        ring.save(self.key_file)
        return ring.last_id

    async def prune(self) -> int:
        """Remove the older keys from the key file once no record needs them; returns how many were wrapped anew."""
        num_wrapped = 0
        while found := await self.rewrap():
            num_wrapped += found
        self.ring.with_last_key_only().save(self.key_file)
        return num_wrapped

    async def rewrap(self) -> int:
        """Wrap every record that an older key wraps with the key file's last key; returns how many it was.

        Records that no key of the file opens are left as they are.
        """
        after, num_wrapped = "", 0
        while places := await self.key_store.places(after, 256):
            for record in await self.find_readable(*places):
                if record is not None:
                    num_wrapped += await self._rewrapped(record)
            after = places[-1]
        return num_wrapped

    # -- private ---

    async def _rewrapped(self, record: KeyRecord) -> bool:
        """Wrap one record with the last key, unless it is gone or wrapped so; whether it was."""
        found: KeyRecord | None = record
        for _ in range(8):
            if found is None or _wrapping_key(found.stored) == self.ring.last_id:
                return False
            newer = self._encode(found.place, found.keys, found.is_live)
            if await self.key_store.put(found.place, newer.stored, found.stored):
                return True
            (found,) = await self.find(found.place)
        raise KeysChanged("the key store keeps changing; try again")

    async def _claim(self, place: str, keys: DataKeys) -> KeyRecord:
        made = self._encode(place, keys, False)
        for _ in range(8):
            (there,) = await self.find(place)
            if there is not None and there.is_live:
                raise KeysChanged("the key store has a live key where a fork is to be made")
            if await self.key_store.put(place, made.stored, None if there is None else there.stored):
                return made
        raise KeysChanged("the key store keeps changing; try again")

    async def _again(self, record: KeyRecord) -> KeyRecord:
        (found,) = await self.find(record.place)
        if found is None or found.keys.birth != record.keys.birth:
            raise KeysChanged("the session was deleted meanwhile")
        return found

    def _encode(self, place: str, keys: DataKeys, is_live: bool) -> KeyRecord:
        body = msgpack.packb([keys.birth, is_live, list(keys.keys.items())])
        key_id, wrapped = self.ring.wrap(body, ("session keys", place))
        return KeyRecord(place, keys, is_live, msgpack.packb([_FORMAT, key_id, wrapped]))

    def _decode(self, place: str, stored: bytes) -> KeyRecord:
        key_id = _wrapping_key(stored)
        body = _unpack(self.ring.unwrap(key_id, _unpack(stored)[2], ("session keys", place)))
        if not _are(body, str, bool, list) or not all(_are(pair, bytes, bytes) for pair in body[2]) or not body[2]:
            raise KeysUnavailable("a record of the key store is damaged")
        birth, is_live, pairs = body
        if any(len(key_id) != KEY_ID_BYTES or len(key) != KEY_BYTES for key_id, key in pairs):
            raise KeysUnavailable("a record of the key store is damaged")
        return KeyRecord(place, DataKeys(birth, dict(pairs)), is_live, stored)


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is written or replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _check_key(ring: KeyRing, stored: bytes | None, key_file: Path) -> None:
    """Raise KeysUnavailable where a key file lacks the key that a record is wrapped with."""
    try:
        key_id = None if stored is None else _wrapping_key(stored)
    except KeysUnavailable:
        # One damaged record concerns one session; the others can be served.
        return
    if key_id is not None and key_id not in ring.keys:
        raise KeysUnavailable(
            f"the key file {key_file} lacks key {key_id!r}, which the key store's keys are wrapped with; "
            "it belongs to another store, or a line was removed too early"
        )


def _wrapping_key(stored: bytes) -> str:
    fields = _unpack(stored)
    if not _are(fields, int, str, bytes) or fields[0] != _FORMAT:
        raise KeysUnavailable("a record of the key store is damaged or of a newer format")
    return str(fields[1])


def _unpack(data: bytes) -> Any:
    limits = {"max_str_len": 256, "max_bin_len": _MAX_RECORD_BYTES, "max_array_len": MAX_KEYS, "max_map_len": 0}
    try:
        return msgpack.unpackb(data, max_ext_len=0, **limits)
    except (ValueError, msgpack.UnpackException) as exc:
        raise KeysUnavailable("a record of the key store is damaged") from exc


def _are(fields: Any, *kinds: type) -> bool:
    if type(fields) is not list or len(fields) != len(kinds):
        return False
    return all(type(field) is kind for field, kind in zip(fields, kinds, strict=True))
