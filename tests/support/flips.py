"""Flips, cuts and exchanges of everything that is stored sealed or digested: `python flips.py NUMBER [SEED]`.

Prints, for each kind of record, how many altered forms were tried and how many of them were accepted. None must be.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hope_memory import (
    Array,
    CommitInfo,
    KeysUnavailable,
    Level,
    Loaded,
    SessionId,
    Snapshot,
    SnapshotCorrupt,
    Vault,
    encode_level,
)
from hope_memory.archive import read_archive, write_archive
from hope_memory.codec import Manifest
from hope_memory.sealing import DataKeys
from hope_memory.seals import Seals

LEVEL = Level({"w": Array("bfloat16", (64, 16), bytes(range(256)) * 8), "n": Array("int64", (), bytes(8))})
LARGE = Level({"w": Array("uint8", (1 << 20,), bytes(1 << 20))})


@dataclass(frozen=True)
class Target:
    """One kind of record: what opens it, the intact bytes, and intact bytes of other places of the same kind."""

    opened: Callable[[bytes], object]
    intact: bytes
    others: list[bytes]
    refusal: type[Exception] = SnapshotCorrupt


class DictKeyStore:
    """A `KeyStore` in memory."""

    def __init__(self) -> None:
        self.records: dict[str, bytes] = {}

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def get(self, places: Sequence[str]) -> list[bytes | None]:
        """As `KeyStore.get`."""
        return [self.records.get(place) for place in places]

    async def put(self, place: str, record: bytes, expected: bytes | None) -> bool:
        """As `KeyStore.put`."""
        if self.records.get(place) != expected:
            return False
        self.records[place] = record
        return True

    async def destroy(self, place: str, expected: bytes) -> bool:
        """As `KeyStore.destroy`."""
        return self.records.get(place) == expected and self.records.pop(place, None) is not None

    async def places(self, after: str, limit: int) -> list[str]:
        """As `KeyStore.places`."""
        return sorted(place for place in self.records if place > after)[:limit]


def level_target(level: Level) -> Target:
    """A sealed level, and the same bytes sealed for other levels, versions, models, births and sessions."""
    keys = DataKeys.generate()
    seals = Seals(SessionId("acme", "a"), keys, are_latest=True)
    encoded = encode_level(level)

    def sealed(by: Seals, name: str = "fast", origin: str = "v1", fingerprint: str = "m") -> bytes:
        return next(by.seal_level(name, encoded, origin, fingerprint, 1 << 40)[1])

    ref, _ = seals.seal_level("fast", encoded, "v1", "m", 1 << 40)
    others = [
        sealed(seals, name="slow"),
        sealed(seals, origin="v2"),
        sealed(seals, fingerprint="n"),
        sealed(Seals(SessionId("rival", "a"), keys)),
        sealed(Seals(SessionId("acme", "a"), DataKeys("0" * 32, keys.keys))),
        sealed(Seals(SessionId("acme", "a"), DataKeys.generate())),
    ]
    return Target(lambda data: seals.open_level("fast", ref, "m", [data]), sealed(seals), others)


def manifest_target() -> Target:
    """A sealed manifest, and those of other versions and sessions under the same key."""
    keys = DataKeys.generate()
    seals = Seals(SessionId("acme", "a"), keys, are_latest=True)

    def sealed(name: str, version: str) -> bytes:
        made = Manifest("acme", name, version, None, 1, 2.5, "m", {"rng": bytes(99)}, None, ((version, ""),), {})
        return Seals(SessionId("acme", name), keys).seal_manifest(made)

    others = [sealed("a", "v2"), sealed("b", "v1")]
    return Target(lambda data: seals.open_manifest(data, "v1"), sealed("a", "v1"), others)


def key_record_target() -> Target:
    """A key record, and those of other places under the same wrapping key."""
    store = DictKeyStore()
    with tempfile.TemporaryDirectory() as folder:
        vault = Vault(Path(folder) / "hope.key", store)
        asyncio.run(vault.open())
    intact, other = (asyncio.run(vault.admit(place)).stored for place in ("here", "there"))

    def opened(data: bytes) -> object:
        store.records["here"] = data
        return asyncio.run(vault.find("here"))

    return Target(opened, intact, [other], KeysUnavailable)


def archive_target(level: Level) -> Target:
    """An archive."""
    info = CommitInfo("v1", None, 1, 2.5, 9, {})
    parts = write_archive(Loaded(info, Snapshot("m", {"x": 1}, {"fast": level, "slow": LEVEL}), ()), "chat")
    return Target(lambda data: read_archive(data, 1 << 24), b"".join(parts), [])


def altered(intact: bytes, rng: random.Random) -> bytes:
    """Return an altered form of the bytes; one time in many it is the same."""
    kind = rng.choice(("flip", "flip", "flip", "flips", "cut", "swap", "grow"))
    data = bytearray(intact)
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "flips":
        for _ in range(rng.randint(2, 16)):
            data[rng.randrange(len(data))] ^= rng.randint(1, 255)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "grow":
        at = rng.randrange(len(data) + 1)
        data[at:at] = rng.randbytes(rng.randint(1, 20))
    else:
        size = rng.randint(1, min(64, len(data) // 2))
        one, two = rng.randrange(len(data) - size), rng.randrange(len(data) - size)
        data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(data)


def sweep(target: Target, num_tries: int, rng: random.Random) -> tuple[int, int]:
    """Return how many altered forms were tried and accepted: other places' bytes first, then random changes."""
    target.opened(target.intact)
    num_tried = num_accepted = 0
    while num_tried < num_tries:
        data = target.others[num_tried] if num_tried < len(target.others) else altered(target.intact, rng)
        if data == target.intact:
            continue
        num_tried += 1
        try:
            target.opened(data)
            num_accepted += 1
        except target.refusal:
            pass
    return num_tried, num_accepted


# What makes each kind of target, and its share of the tries.
TARGETS: dict[str, tuple[Callable[[], Target], float]] = {
    "level": (lambda: level_target(LEVEL), 0.3),
    "large level": (lambda: level_target(LARGE), 0.02),
    "manifest": (manifest_target, 0.3),
    "key record": (key_record_target, 0.2),
    "archive": (lambda: archive_target(LEVEL), 0.17),
    "large archive": (lambda: archive_target(LARGE), 0.01),
}


def main(num_tries: int, seed: int) -> int:
    """Sweep all kinds, print a line for each, and return how many altered forms were accepted."""
    rng, num_accepted = random.Random(seed), 0
    for name, (make, share) in TARGETS.items():
        tried, accepted = sweep(make(), max(1, int(num_tries * share)), rng)
        num_accepted += accepted
        print(f"{name:14} {tried:9,} altered, {accepted} accepted")
    return num_accepted


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(main(numbers[0], numbers[1] if len(numbers) > 1 else 1) > 0)
