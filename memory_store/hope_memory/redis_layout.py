"""Names of the Redis store's keys and fields, and the plain text in them that its scripts read too.

A session and its forks, a *family*, share one hash, so that levels are shared without copies and the whole family is
evicted, expires and moves between cluster nodes as one. Names are keyed hashes: a reader of Redis learns no tenant, no
session name and no request id. Sealed fields are marked *.

{prefix}{{place}}:s     hash of the family whose first session has this name
    v                       layout version
    is                      birth of the session that has the key's name now; absent: none
    in                      key of the family's hash, where that session is a fork which lives in another hash
    tomb                    birth of the session that was deleted; the hash expires, and late pieces with it
    t:<birth>               "created updated", Unix seconds
    n:<birth>             * the session's name
    h:<birth>               version of the head; absent: nothing is committed
    c:<birth>               kept versions, newest first
    q:<birth>               remembered requests, newest last: "number:hash …"
    a:<birth>:<hash>      * what a request was answered with
    k:<birth>               the last version whose answer was acknowledged
    p:<birth>               a fork in the making: Redis' clock when it began
    m:<version>           * manifest
    i:<version>           * summary; the facts are its associated data
    f:<version>             facts (see `Facts`)
    l:<birth>:<level>@<origin>#<n>   * piece n of a level, at most PIECE_BYTES
{prefix}{t:{place}}:i   sorted set of a tenant's sessions, by place
{prefix}mark            what the store notes of the key file that it is used with
"""

from __future__ import annotations

from dataclasses import dataclass

from hope_memory.codec import LevelRef
from hope_memory.errors import SnapshotCorrupt

LAYOUT = "1"
PIECE_BYTES = 1 << 20
TOMB_MS = 24 * 3600 * 1000
_NONE = "-"


def session_key(prefix: str, place: str) -> str:
    """The hash of the family whose first session has this place; the braces choose the cluster slot."""
    return f"{prefix}{{{place}}}:s"


def index_key(prefix: str, tenant_place: str) -> str:
    """The sorted set of a tenant's sessions."""
    return f"{prefix}{{t:{tenant_place}}}:i"


def mark_key(prefix: str) -> str:
    """Where the mark of the key file is."""
    return f"{prefix}mark"


def level_stem(ref: LevelRef, level_place: str) -> str:
    """The name of a stored level, of which its pieces' fields are made; `level_place` hashes the level's name."""
    return f"{ref.birth}:{level_place}@{ref.origin}"


def piece_field(stem: str, index: int) -> str:
    """The field of one piece of a level."""
    return f"l:{stem}#{index}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What the scripts must know of a commit, in plain text; `versions` shows it, `load` does not use it.

    stems: of each level, with the number of its pieces. The rest is as in `CommitInfo` and `Manifest`.
    """

    base: str | None
    parent: str | None
    number: int
    created: float
    num_bytes: int
    stems: tuple[tuple[str, int], ...]

    def encode(self) -> str:
        """The text of the field `f:<version>`."""
        numbers = f"{self.number} {self.created!r} {self.num_bytes}"
        stems = "".join(f" {stem}*{num_pieces}" for stem, num_pieces in self.stems)
        return f"{self.base or _NONE} {self.parent or _NONE} {numbers}{stems}"

    @classmethod
    def decode(cls, stored: bytes | None) -> Facts:
        """Read what `encode` wrote. Raises SnapshotCorrupt on anything else."""
        words = (stored or b"").decode(errors="replace").split(" ")
        try:
            base, parent, number, created, num_bytes = words[:5]
            stems = tuple((stem, int(count)) for stem, count in (word.rsplit("*", 1) for word in words[5:]))
            numbers = int(number), float(created), int(num_bytes)
        except ValueError:
            raise SnapshotCorrupt("the stored facts of a commit are damaged") from None
        return cls(_or_none(base), _or_none(parent), *numbers, stems)


def _or_none(word: str) -> str | None:
    return None if word == _NONE else word
