"""Authenticated encryption of stored bytes: AES-256-GCM under a session's data key.

Sealed, in this order: magic `HS` | schema (u8) | zero (u8) | key id (8 bytes) | nonce (12 bytes, random) | ciphertext
and tag. What the bytes are *for* (kind, tenant, session, commit, level, piece, …) is associated data: it is not stored,
the reader says what it expects, and bytes from any other place fail.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hope_memory.errors import SnapshotCorrupt

SEAL_SCHEMA = 2
KEY_BYTES = 32
KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEAD = b"HS" + bytes((SEAL_SCHEMA, 0))
_CIPHER_AT = len(_HEAD) + KEY_ID_BYTES + _NONCE_BYTES
SEAL_BYTES = _CIPHER_AT + _TAG_BYTES
"""Bytes that sealing adds."""

Part = str | int | bytes


def context_bytes(parts: Sequence[Part]) -> bytes:
    """Join parts so that different sequences never give the same bytes: each behind its type and length."""
    out = [SEAL_SCHEMA.to_bytes(1, "little")]
    for part in parts:
        if isinstance(part, int):
            kind, data = b"i", part.to_bytes(8, "little", signed=True)
        elif isinstance(part, str):
            kind, data = b"s", part.encode()
        else:
            kind, data = b"b", part
        out += (kind, len(data).to_bytes(4, "little"), data)
    return b"".join(out)


class UnknownKey(SnapshotCorrupt):
    """Bytes are sealed with a key that the given ones lack: they were made with later keys, or are damaged."""


def key_id_of(sealed: bytes | memoryview) -> bytes:
    """Return the id of the key that sealed some bytes; unproven until they are opened. Raises SnapshotCorrupt."""
    view = memoryview(sealed)
    if len(view) < SEAL_BYTES or view[: len(_HEAD)] != _HEAD:
        raise SnapshotCorrupt(f"{len(view)} bytes are not sealed by this build's schema {SEAL_SCHEMA}")
    return bytes(view[len(_HEAD) : len(_HEAD) + KEY_ID_BYTES])


@dataclass(frozen=True, slots=True)
class DataKeys:
    """The keys of one incarnation of a session: the newest seals, all open what they sealed.

    birth: 128 random bits in hex; a session that is deleted and made again has another.
    keys: by key id, in the order they were made; a fork adds one to its source, so that neither reads the other's
        later commits.
    """

    birth: str
    keys: Mapping[bytes, bytes] = field(repr=False)

    @classmethod
    def generate(cls) -> DataKeys:
        """New keys for a new session."""
        return cls(secrets.token_hex(16), {}).with_new_key()

    def with_new_key(self) -> DataKeys:
        """The same keys and a new one, which seals from now on."""
        return DataKeys(self.birth, {**self.keys, os.urandom(KEY_ID_BYTES): os.urandom(KEY_BYTES)})

    def inherited(self, last: bytes | None = None) -> DataKeys:
        """Keys for a fork: another birth, these up to `last` (None: all) to read with, and one to write with."""
        ids = list(self.keys)
        kept = ids if last is None else ids[: ids.index(last) + 1]
        return DataKeys(secrets.token_hex(16), {name: self.keys[name] for name in kept}).with_new_key()

    def seal(self, data: bytes | memoryview, context: Sequence[Part]) -> bytes:
        """Encrypt data for one place."""
        key_id, key = list(self.keys.items())[-1]
        nonce = os.urandom(_NONCE_BYTES)
        return b"".join((_HEAD, key_id, nonce, AESGCM(key).encrypt(nonce, data, context_bytes(context))))

    def open(self, sealed: bytes | memoryview, context: Sequence[Part]) -> bytes:
        """Decrypt what `seal` made for the same place. Raises SnapshotCorrupt on anything else, UnknownKey where it is
        sealed with a key that is not among these."""
        view = memoryview(sealed)
        key = self.keys.get(key_id_of(view))
        if key is None:
            raise UnknownKey("the bytes are sealed with a key that this session does not have")
        nonce = bytes(view[len(_HEAD) + KEY_ID_BYTES : _CIPHER_AT])
        try:
            return AESGCM(key).decrypt(nonce, view[_CIPHER_AT:], context_bytes(context))
        except InvalidTag:
            raise SnapshotCorrupt("the bytes were altered, truncated or sealed for another place") from None
