"""API keys and what each may do: a file of their hashes, one JSON object a line, replaced whole by `hope keys`.

A key is 256 random bits, so nobody can guess one from its hash however fast the hash is: SHA-256 without salt is
enough. Slow, salted hashes protect secrets that people think up, and would cost every request their time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from hope_server.api.scopes import ALL_SCOPES, DEFAULT_SCOPES
from hope_server.errors import StartupError

__all__ = ["KEY_PREFIX", "TENANT_RULE", "KeyLimits", "KeyRecord", "KeyRegistry", "hash_of", "new_key", "tenant_of_hash"]

KEY_PREFIX = "hope_"
"""How keys begin, so that people and secret scanners know one when they see it."""

TENANT_RULE = "use 1 to 64 letters, digits, _ or -"

_KEY_BYTES = 32
_MAX_FILE_BYTES = 64 * 2**20
_OTHERS_MAY_WRITE = 0o022

Limit = Annotated[int, Field(ge=0, le=2**63 - 1)]


def _check_scopes(scopes: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(scopes) - set(ALL_SCOPES))
    if unknown or not scopes:
        raise ValueError(f"unknown scope {', '.join(unknown) or 'none'}; use some of {', '.join(ALL_SCOPES)}")
    return tuple(scope for scope in ALL_SCOPES if scope in scopes)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class KeyLimits(_Frozen):
    """What a key may use; None takes the server's default (the setting of the same name), 0 sets no limit."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_sessions: Limit | None = None
    max_stored_bytes: Limit | None = None
    max_open_requests: Limit | None = None

    def over(self, defaults: KeyLimits) -> KeyLimits:
        """Return these limits with `defaults` where they say nothing."""
        return KeyLimits(**(defaults.model_dump() | self.model_dump(exclude_none=True)))


class KeyRecord(_Frozen):
    """A key without the key. Times are Unix seconds.

    id: how people and logs call it. hash: SHA-256 of the key, 64 hex digits. tenant: whose sessions it sees.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    scopes: Annotated[tuple[str, ...], BeforeValidator(lambda given: tuple(given)), AfterValidator(_check_scopes)]
    created: int
    expires: int | None = None
    revoked: int | None = None
    limits: KeyLimits = KeyLimits()

    def is_valid(self, now: float) -> bool:
        """Whether the key opens anything at `now`."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def hash_of(key: bytes) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key).hexdigest()


def tenant_of_hash(key_hash: str) -> str:
    """Return the tenant of a key that is told no other: one of its own."""
    return key_hash[:16]


def new_key(
    name: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    tenant: str | None = None,
    limits: KeyLimits | None = None,
    expires: int | None = None,
) -> tuple[KeyRecord, str]:
    """Return the record of a fresh key and the key itself, which nothing keeps. Raises ValueError for bad arguments."""
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    found = hash_of(key.encode())
    record = KeyRecord(
        id=f"key_{secrets.token_hex(6)}",
        name=name,
        hash=found,
        tenant=tenant_of_hash(found) if tenant is None else tenant,
        scopes=tuple(scopes),
        created=int(time.time()),
        expires=expires,
        limits=limits or KeyLimits(),
    )
    return record, key


class KeyRegistry:
    """The file of one deployment's keys. Several processes may change it at once; readers see it whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def signature(self) -> tuple[int, ...]:
        """Return numbers that differ once the file has changed; none if there is no file. Raises StartupError."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise StartupError(f"the API key file {self.path} cannot be read: {exc.strerror}") from exc
        return (found.st_mtime_ns, found.st_ino, found.st_size, found.st_mode)

    def read(self) -> tuple[KeyRecord, ...]:
        """Return every key, revoked ones too; none if there is no file.

        Raises StartupError with one line that says what is wrong and where; it quotes nothing of the file.
        """
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & _OTHERS_MAY_WRITE:
                    raise StartupError(
                        f"others than its owner may write the API key file {self.path}; chmod 600 {self.path}"
                    )
                data = file.read(_MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return ()
        except OSError as exc:
            raise StartupError(f"the API key file {self.path} cannot be read: {exc.strerror}") from exc
        if len(data) > _MAX_FILE_BYTES:
            raise StartupError(f"the API key file {self.path} has more than {_MAX_FILE_BYTES:,} bytes")
        records = tuple(self._record(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip())
        if len({each.id for each in records} | {each.hash for each in records}) < 2 * len(records):
            raise StartupError(f"the API key file {self.path} has an id or a hash twice; remove one of the lines")
        return records

    def add(self, record: KeyRecord) -> None:
        """Append a key, durably. Raises StartupError if its name is taken by a key that was not revoked."""
        with self._locked():
            records = self.read()
            if any(each.name == record.name and each.revoked is None for each in records):
                raise StartupError(f"there is a key named {record.name!r} already; choose another name, or revoke it")
            self._write([*records, record])

    def revoke(self, which: str) -> KeyRecord:
        """Revoke the key of that id or name; return it as it is now. Raises StartupError if there is none."""
        with self._locked():
            records = self.read()
            found = [each for each in records if each.id == which or (each.name == which and each.revoked is None)]
            if not found:
                raise StartupError(f"the API key file {self.path} has no key {which!r}; see: hope keys list")
            revoked = found[0]
            if revoked.revoked is None:
                revoked = revoked.model_copy(update={"revoked": int(time.time())})
                self._write([revoked if each.id == revoked.id else each for each in records])
            return revoked

    def _record(self, number: int, line: bytes) -> KeyRecord:
        try:
            return KeyRecord.model_validate_json(line)
        except ValidationError as exc:
            fault = exc.errors(include_input=False)[0]
            where = ".".join(map(str, fault["loc"])) or "the line"
            raise StartupError(f"line {number} of the API key file {self.path}: {where}: {fault['msg']}") from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the file meanwhile; the folder is locked, as the file is replaced."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise StartupError(f"the API key file {self.path} cannot be made: {exc.strerror}") from exc
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _write(self, records: Sequence[KeyRecord]) -> None:
        lines = [json.dumps(each.model_dump(exclude_none=True), ensure_ascii=True) + "\n" for each in records]
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
        try:
            try:
                handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.writelines(lines)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(draft, self.path)
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(draft)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as exc:
            raise StartupError(f"the API key file {self.path} cannot be written: {exc.strerror}") from exc
