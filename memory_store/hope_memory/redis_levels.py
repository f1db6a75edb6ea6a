"""Levels in Redis: sealed in pieces, written and read piece by piece, off the event loop where that takes long.

A piece is at most PIECE_BYTES, so that Redis answers its other clients between two of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from hope_memory.codec import LevelRef, Manifest, encode_level
from hope_memory.errors import SnapshotCorrupt
from hope_memory.redis_client import Operation
from hope_memory.redis_layout import PIECE_BYTES, level_stem, piece_field
from hope_memory.seals import Seals
from hope_memory.snapshot import MAX_LEVELS, Level

T = TypeVar("T")

# Copying or opening this much takes about as long as handing it to a thread and back.
_INLINE_BYTES = 1 << 20


async def off_loop(num_bytes: int, job: Callable[[], T]) -> T:
    """Run a job over so many bytes: in place where it is short, else in a thread, held until it has ended."""
    if num_bytes <= _INLINE_BYTES:
        return job()
    return await asyncio.to_thread(job)


class LevelNames:
    """How levels are named in the store: with the hash of each level's name, so that any name will do."""

    def __init__(self, place: Callable[[str], str]) -> None:
        self._place = lru_cache(MAX_LEVELS)(place)

    def stem(self, name: str, ref: LevelRef) -> str:
        """The name of a stored level."""
        return level_stem(ref, self._place(name))


@dataclass(frozen=True, slots=True)
class ChangedLevels:
    """Levels that the commit `version` writes, encoded; they are sealed piece by piece while they are staged.

    So no more than one sealed piece is in memory; to make and free them all at once takes longer than to seal them.
    """

    seals: Seals
    names: LevelNames
    version: str
    fingerprint: str
    encoded: Mapping[str, bytes]

    @property
    def refs(self) -> dict[str, LevelRef]:
        """What the manifest says of each."""
        return {name: self._seal(name)[0] for name in self.encoded}

    def fields(self) -> list[str]:
        """The names of all pieces."""
        refs = self.refs
        return [self._field(name, ref, index) for name, ref in refs.items() for index in range(ref.num_pieces)]

    def pieces(self) -> Iterator[tuple[str, bytes]]:
        """Each piece with its name, sealed when it is asked for."""
        for name in self.encoded:
            ref, pieces = self._seal(name)
            for index, piece in enumerate(pieces):
                yield self._field(name, ref, index), piece

    def _seal(self, name: str) -> tuple[LevelRef, Iterator[bytes]]:
        return self.seals.seal_level(name, self.encoded[name], self.version, self.fingerprint, PIECE_BYTES)

    def _field(self, name: str, ref: LevelRef, index: int) -> str:
        return piece_field(self.names.stem(name, ref), index)


async def encode_levels(levels: Mapping[str, Level]) -> dict[str, bytes]:
    """Encode levels, which copies them once; after that their arrays are not needed any more."""
    num_bytes = sum(level.num_bytes for level in levels.values())
    return await off_loop(num_bytes, lambda: {name: encode_level(level) for name, level in levels.items()})


async def stage(redis: Operation, key: str, changed: ChangedLevels) -> None:
    """Write the pieces, small ones together. Nobody sees them until a manifest names them."""
    words: list[str | bytes] = []
    num_bytes = 0
    for field, piece in changed.pieces():
        if words and num_bytes + len(piece) > PIECE_BYTES:
            await redis.call("HSET", key, *words)
            words, num_bytes = [], 0
        words += (field, piece)
        num_bytes += len(piece)
    if words:
        await redis.call("HSET", key, *words)


async def unstage(redis: Operation, key: str, changed: ChangedLevels) -> None:
    """Remove pieces that no commit will name."""
    if fields := changed.fields():
        await redis.call("HDEL", key, *fields)


async def fetch_levels(
    redis: Operation, key: str, manifest: Manifest, names: LevelNames, seals: Seals
) -> dict[str, Level]:
    """Read and open all levels that a manifest names. Raises SnapshotCorrupt where one is missing or not intact."""
    wanted = [
        (name, index, piece_field(names.stem(name, ref), index), _piece_bytes(ref, index))
        for name, ref in manifest.levels.items()
        for index in range(ref.num_pieces)
    ]
    pieces: dict[str, list[bytes]] = {name: [] for name in manifest.levels}
    for group in _groups([num_bytes for _, _, _, num_bytes in wanted]):
        found = await redis.call("HMGET", key, *(wanted[at][2] for at in group))
        for at, sealed in zip(group, found, strict=True):
            name, _, _, num_bytes = wanted[at]
            if sealed is None or len(sealed) != num_bytes:
                raise SnapshotCorrupt(f"a piece of level {name!r} is missing or not of the size in the manifest")
            pieces[name].append(sealed)

    def unseal() -> dict[str, Level]:
        return {
            name: seals.open_level(name, ref, manifest.fingerprint, pieces.pop(name))
            for name, ref in manifest.levels.items()
        }

    return await off_loop(manifest.level_num_bytes, unseal)


class ByteBudget:
    """Bytes that may be in memory at once for one purpose. What is larger than all of it waits to be alone."""

    def __init__(self, num_bytes: int) -> None:
        self._all = num_bytes
        self._left = num_bytes
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def of(self, num_bytes: int) -> AsyncIterator[None]:
        """Wait until so many bytes are free and hold them for the block."""
        taken = min(num_bytes, self._all)
        while taken > self._left:
            self._freed.clear()
            await self._freed.wait()
        self._left -= taken
        try:
            yield
        finally:
            self._left += taken
            self._freed.set()


def _piece_bytes(ref: LevelRef, index: int) -> int:
    if index < ref.num_pieces - 1:
        return PIECE_BYTES
    return ref.num_bytes - (ref.num_pieces - 1) * PIECE_BYTES


def _groups(sizes: list[int]) -> list[list[int]]:
    """Indices of consecutive pieces that together are at most PIECE_BYTES, or one alone."""
    groups: list[list[int]] = []
    total = 0
    for index, size in enumerate(sizes):
        if not groups or total + size > PIECE_BYTES:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += size
    return groups
