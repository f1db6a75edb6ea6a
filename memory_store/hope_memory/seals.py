"""What a session stores, sealed: every kind of record with the context that it belongs to, the same in every store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hope_memory.codec import (
    LevelRef,
    Manifest,
    decode_answer,
    decode_info,
    decode_level,
    decode_manifest,
    encode_answer,
    encode_info,
    encode_manifest,
)
from hope_memory.errors import SnapshotCorrupt
from hope_memory.protocol import CommitInfo, Request, SessionId
from hope_memory.sealing import SEAL_BYTES, DataKeys, Part, UnknownKey
from hope_memory.snapshot import Level

_INFO_KINDS = {"version": str, "parent": str | None, "number": int, "created": float, "num_bytes": int, "meta": dict}


class StaleKeys(Exception):
    """Bytes are sealed with a key that is not among these, which are perhaps no longer the session's latest."""


@dataclass(frozen=True, slots=True)
class Seals:
    """Seals and opens what is stored of one session, with its keys.

    are_latest: the keys were read after the bytes to open were seen. Bytes under an unknown key are then damage;
        otherwise they raise StaleKeys, and the caller reads the keys and the bytes again.
    Opening raises SnapshotCorrupt on bytes that are altered, truncated or of another place.
    """

    session: SessionId
    keys: DataKeys
    are_latest: bool = False

    def seal_manifest(self, manifest: Manifest) -> bytes:
        """Seal a commit's manifest. Raises ValueError where its meta is too large."""
        return self.keys.seal(encode_manifest(manifest), self._of("manifest", manifest.version))

    def open_manifest(self, sealed: bytes, version: str) -> Manifest:
        """Return the manifest of a version of this session."""
        manifest = decode_manifest(self._open(sealed, self._of("manifest", version)))
        if (manifest.tenant, manifest.name, manifest.version) != (self.session.tenant, self.session.name, version):
            raise SnapshotCorrupt(f"the manifest stored for version {version} belongs to another commit")
        return manifest

    def seal_level(
        self, name: str, encoded: bytes, origin: str, fingerprint: str, max_piece_bytes: int
    ) -> tuple[LevelRef, Iterator[bytes]]:
        """Return the reference to an encoded level of the commit `origin`, and its sealed pieces, made one by one.

        max_piece_bytes: size of a sealed piece, at most.
        """
        step = max_piece_bytes - SEAL_BYTES
        num_pieces = max(1, -(-len(encoded) // step))
        ref = LevelRef(origin, self.keys.birth, len(encoded) + num_pieces * SEAL_BYTES, num_pieces)
        view = memoryview(encoded)

        def pieces() -> Iterator[bytes]:
            for index in range(num_pieces):
                part = view[index * step : (index + 1) * step]
                yield self.keys.seal(part, self._of_piece(name, ref, fingerprint, index))

        return ref, pieces()

    def open_level(self, name: str, ref: LevelRef, fingerprint: str, pieces: Sequence[bytes]) -> Level:
        """Return the level that the pieces make."""
        if len(pieces) != ref.num_pieces or sum(map(len, pieces)) != ref.num_bytes:
            raise SnapshotCorrupt(f"level {name!r} is not of the size in its manifest")
        contexts = (self._of_piece(name, ref, fingerprint, index) for index in range(ref.num_pieces))
        parts = [self._open(piece, context) for piece, context in zip(pieces, contexts, strict=True)]
        return decode_level(parts[0] if len(parts) == 1 else b"".join(parts))

    def seal_info(self, version: str, info: dict[str, Any]) -> bytes:
        """Seal the public part of a commit's meta. Raises ValueError where it is too large."""
        return self.keys.seal(encode_info(info), self._of("info", version))

    def open_info(self, sealed: bytes, version: str) -> dict[str, Any]:
        """Return the public part of a commit's meta."""
        return decode_info(self._open(sealed, self._of("info", version)))

    def seal_answer(self, place: str, request: Request, info: CommitInfo) -> bytes:
        """Seal what a request, whose hash is `place`, was answered with."""
        kept = {name: value for name, value in asdict(info).items() if name in _INFO_KINDS}
        fields = {"digest": request.digest, "info": kept}
        return self.keys.seal(encode_answer(fields, request.reply), self._of("request", place))

    def open_answer(self, sealed: bytes, place: str) -> tuple[CommitInfo, bytes, bytes]:
        """Return a request's commit, digest and reply."""
        fields, reply = decode_answer(self._open(sealed, self._of("request", place)))
        info, digest = fields.get("info"), fields.get("digest")
        if not isinstance(info, dict) or not isinstance(digest, bytes) or info.keys() != _INFO_KINDS.keys():
            raise SnapshotCorrupt("a stored answer has other fields than expected")
        if not all(isinstance(info[name], kind) for name, kind in _INFO_KINDS.items()):
            raise SnapshotCorrupt("a stored answer has fields of wrong types")
        return CommitInfo(**info), digest, reply

    def seal_name(self) -> bytes:
        """Seal the session's name."""
        context = ("name", self.session.tenant, self.keys.birth)
        return self.keys.seal(self.session.name.encode(), context)

    def _of(self, kind: str, place: str) -> tuple[Part, ...]:
        return (kind, self.session.tenant, self.session.name, self.keys.birth, place)

    def _of_piece(self, name: str, ref: LevelRef, fingerprint: str, index: int) -> tuple[Part, ...]:
        # Without the session's name and with the writer's birth: forks read the same bytes.
        place = (ref.birth, name, ref.origin, fingerprint, index, ref.num_pieces)
        return ("level", self.session.tenant, *place)

    def _open(self, sealed: bytes, context: Sequence[Part]) -> bytes:
        try:
            return self.keys.open(sealed, context)
        except UnknownKey:
            if self.are_latest:
                raise
            raise StaleKeys from None


def open_name(tenant: str, keys: DataKeys, sealed: bytes) -> SessionId:
    """Return the session whose name was sealed with its keys. Raises SnapshotCorrupt, UnknownKey."""
    try:
        return SessionId(tenant, keys.open(sealed, ("name", tenant, keys.birth)).decode())
    except ValueError as exc:
        raise SnapshotCorrupt(f"a stored session has an impossible name: {exc}") from exc
