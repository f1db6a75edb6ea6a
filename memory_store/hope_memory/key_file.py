"""The key file: the secrets that a deployment holds outside its stores.

Lines of text, `#` begins a comment:
    names <64 hex>        keys the hashes that stand for tenants and sessions in the stores; never changes
    key <id> <64 hex>     wraps sessions' data keys; the last one wraps, all of them unwrap, so `hope vault rotate`
                          replaces a key by adding one, wrapping everything with it, and removing the others
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hope_memory.errors import KeysUnavailable
from hope_memory.sealing import KEY_BYTES, Part, context_bytes

_KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,32}")
_SECRET = re.compile(r"[0-9a-fA-F]{64}")
_NONCE_BYTES = 12
_HEADER = """\
# Keys of a HOPE server. Whoever holds this file can read every session that was stored with it; without it none can
# be read again. Keep a copy in a safe place, apart from backups of the store.
"""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """What a key file holds: `names` keys the hashes, `keys` wrap, the last one for new wraps."""

    names: bytes = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> KeyRing:
        """Read a key file. Raises KeysUnavailable with one line that says what is wrong with it."""
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as exc:
            raise KeysUnavailable(f"cannot read the key file {path}: {getattr(exc, 'strerror', 'not text')}") from exc
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, origin: str) -> KeyRing:
        """Read the text of a key file; `origin` names it in errors."""
        names, keys = None, {}
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            is_secret = len(words) > 1 and _SECRET.fullmatch(words[-1]) is not None
            if words[0] == "names" and len(words) == 2 and is_secret and names is None:
                names = bytes.fromhex(words[1])
            elif words[0] == "key" and len(words) == 3 and is_secret and _KEY_ID.fullmatch(words[1]):
                if words[1] in keys:
                    raise KeysUnavailable(f"the key file {origin} has two keys named {words[1]!r}")
                keys[words[1]] = bytes.fromhex(words[2])
            else:
                raise KeysUnavailable(f"line {number} of the key file {origin} is neither `names …` nor `key ID …`")
        if names is None or not keys:
            raise KeysUnavailable(f"the key file {origin} needs one line `names …` and at least one `key ID …`")
        return cls(names, keys)

    @classmethod
    def open(cls, path: Path) -> tuple[KeyRing, bool]:
        """Read a key file, made anew, readable by its owner only, where missing; whether it was made.

        Safe when several processes do it at once: one makes it, the others read it.
        """
        if not path.exists():
            ring = cls(os.urandom(KEY_BYTES), {new_key_id(): os.urandom(KEY_BYTES)})
            if _create(path, ring.text()):
                return ring, True
        return cls.load(path), False

    def text(self) -> str:
        """The key file's text."""
        lines = [f"key {name} {key.hex()}\n" for name, key in self.keys.items()]
        return f"{_HEADER}names {self.names.hex()}\n{''.join(lines)}"

    def with_new_key(self) -> KeyRing:
        """The ring with one key more, which wraps from now on."""
        return KeyRing(self.names, {**self.keys, new_key_id(): os.urandom(KEY_BYTES)})

    def with_last_key_only(self) -> KeyRing:
        """The ring without the keys that wrap no more."""
        return KeyRing(self.names, {self.last_id: self.keys[self.last_id]})

    @property
    def last_id(self) -> str:
        """The id of the key that wraps."""
        return list(self.keys)[-1]

    def save(self, path: Path) -> None:
        """Put the ring in the place of a key file, whole and durably. Raises KeysUnavailable."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _write(draft, self.text())
            os.replace(draft, path)
            _sync_folder(path.parent)
        except OSError as exc:
            raise KeysUnavailable(f"cannot write the key file {path}: {exc.strerror}") from exc

    def place(self, *parts: str) -> str:
        """The keyed hash, 32 hex digits, that stands for some names in a store."""
        return hashlib.blake2b(context_bytes(parts), digest_size=16, key=self.names).hexdigest()

    def wrap(self, data: bytes, context: Sequence[Part]) -> tuple[str, bytes]:
        """Encrypt data under the last key; returns the key's id and the wrapped bytes."""
        key_id, nonce = self.last_id, os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self.keys[key_id]).encrypt(nonce, data, context_bytes(("wrap", key_id, *context)))
        return key_id, nonce + sealed

    def unwrap(self, key_id: str, wrapped: bytes, context: Sequence[Part]) -> bytes:
        """Decrypt what `wrap` made for the same context. Raises KeysUnavailable."""
        key = self.keys.get(key_id)
        if key is None:
            raise KeysUnavailable(f"the key file lacks key {key_id!r}, which this session's data key is wrapped with")
        try:
            sealed = context_bytes(("wrap", key_id, *context))
            return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], sealed)
        except (InvalidTag, ValueError):
            raise KeysUnavailable(
                f"a data key wrapped with key {key_id!r} was altered, or the key is another"
            ) from None


def new_key_id() -> str:
    """A name for a new key: the day, and four hex digits so that two of one day differ."""
    return f"{time.strftime('%Y-%m-%d', time.gmtime())}-{secrets.token_hex(2)}"


def _create(path: Path, text: str) -> bool:
    """Write a new file whole and durably, or leave the one there is; whether it was written."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write(draft, text)
            # Linking fails where the name is taken, so a key file is never replaced.
            os.link(draft, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)
        _sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as exc:
        raise KeysUnavailable(f"cannot make the key file {path}: {exc.strerror}") from exc
    return True


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
