"""Commits of a session in Redis: what one is made of, how it becomes the head, and how it is read again."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace
from typing import Any

from hope_memory.codec import KEEP_REQUESTS, Manifest
from hope_memory.errors import SnapshotCorrupt, SnapshotTooLarge, VersionMissing
from hope_memory.protocol import Answered, CommitInfo, Request
from hope_memory.redis_client import Operation
from hope_memory.redis_layout import Facts
from hope_memory.redis_levels import ChangedLevels, LevelNames, stage
from hope_memory.redis_scripts import FLIP
from hope_memory.redis_sessions import Member, View

_STAGINGS = 3
Lineage = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Commits kept of each session, the stored bytes that one commit may name, a session's life in ms (0: no end)."""

    keep_versions: int
    max_snapshot_bytes: int
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Draft:
    """A commit to be, sealed.

    tip: what it follows; record: what is kept of the request with the hash `request`; pins: versions that stay.
    """

    member: Member
    tip: str
    info: CommitInfo
    manifest: bytes
    facts: bytes
    summary: bytes
    request: str = ""
    record: bytes = b""
    pins: frozenset[str] = frozenset()


def wanted(version: str | None) -> str:
    """How a look asks for a version: "" is the head, so what no version is called stands for an empty one."""
    return "" if version is None else version or "-"


def new_version() -> str:
    """A random commit id."""
    return secrets.token_hex(16)


def lineage_of(head: Manifest | None, view: View) -> Lineage:
    """The head's lineage; what the fields tell of it where its manifest is damaged (None), so that commits heal it."""
    if head is not None:
        return head.lineage
    hashes = dict(view.requests)
    return tuple((version, hashes.get(view.number - back, "")) for back, version in enumerate(view.kept))


def placed(made: Manifest, number: int, earlier: Lineage, request: str = "") -> Manifest:
    """Give a manifest its number, its time and its lineage, which goes on the earlier one."""
    lineage = ((made.version, request), *earlier)[:KEEP_REQUESTS]
    return replace(made, number=number, created=time.time(), lineage=lineage)


def with_info(made: Manifest, info: dict[str, Any] | None) -> Manifest:
    """The manifest with another public part; None leaves it as it is."""
    return made if info is None else replace(made, meta={**made.meta, "info": info})


def seal_commit(
    member: Member,
    tip: str,
    made: Manifest,
    names: LevelNames,
    limits: Limits,
    request: tuple[str, Request] | None = None,
) -> Draft:
    """Seal a manifest and all that goes with it. Raises ValueError (meta too large), SnapshotTooLarge."""
    seals, public = member.seals, made.meta.get("info", {})
    summary = seals.seal_info(made.version, public)
    manifest = seals.seal_manifest(made)
    num_bytes = made.level_num_bytes + len(manifest)
    if num_bytes > limits.max_snapshot_bytes:
        raise SnapshotTooLarge(num_bytes, limits.max_snapshot_bytes)
    stems = tuple((names.stem(name, ref), ref.num_pieces) for name, ref in made.levels.items())
    facts = Facts(made.base, made.parent, made.number, made.created, num_bytes, stems).encode().encode()
    info = CommitInfo(made.version, made.parent, made.number, made.created, num_bytes, public)
    draft = Draft(member, tip, info, manifest, facts, summary)
    if request is None:
        return draft
    place, asked = request
    return replace(draft, request=place, record=seals.seal_answer(place, asked, info))


async def flip(redis: Operation, draft: Draft, changed: ChangedLevels | None, limits: Limits) -> tuple[str, str]:
    """Stage the changed levels and make the draft the head, or find out why not.

    Returns what happened, and for a conflict the tip that there is instead: "done", "replay" (the request was
    answered), "conflict", "missing" (the session), "incomplete" (levels that it shares with other commits are gone).
    """
    member = draft.member
    arguments = (
        *(member.birth, draft.info.version, draft.tip, draft.manifest, draft.facts, draft.summary),
        *(repr(draft.info.created), draft.info.number, draft.request, draft.record),
        *(limits.keep_versions, KEEP_REQUESTS, limits.ttl_ms, " ".join(sorted(draft.pins))),
    )
    status, rest = b"incomplete", [b""]
    for _ in range(_STAGINGS):
        if changed is not None:
            await stage(redis, member.key, changed)
        status, *rest = await redis.run(FLIP, member.key, *arguments)
        if status != b"incomplete" or changed is None:
            break
    return status.decode(), rest[0].decode() if status == b"conflict" else ""


def open_manifest(member: Member, view: View) -> Manifest:
    """Return the manifest of the commit that was looked at. Raises VersionMissing, SnapshotCorrupt."""
    if view.version not in view.kept:
        raise VersionMissing(member.session.name, view.version or None)
    if view.manifest is None:
        raise SnapshotCorrupt(f"the manifest of version {view.version} is missing")
    return member.seals.open_manifest(view.manifest, view.version)


def manifest_or_none(member: Member, view: View) -> Manifest | None:
    """As `open_manifest`, but None where the manifest is damaged or there is no commit."""
    try:
        return open_manifest(member, view)
    except (SnapshotCorrupt, VersionMissing):
        return None


def commit_info(made: Manifest, view: View) -> CommitInfo:
    """The commit as its opened manifest tells it."""
    num_bytes = made.level_num_bytes + len(view.manifest or b"")
    return CommitInfo(made.version, made.parent, made.number, made.created, num_bytes, made.meta.get("info", {}))


def listed_info(member: Member, version: str, facts: bytes | None, summary: bytes | None) -> CommitInfo:
    """The commit as its facts and summary tell it, without its manifest. Raises SnapshotCorrupt (the facts)."""
    known = Facts.decode(facts)
    try:
        meta = member.seals.open_info(summary or b"", version)
    except SnapshotCorrupt:
        # A damaged summary must not hide the session: `load` does not need it.
        meta = {}
    return CommitInfo(version, known.parent, known.number, known.created, known.num_bytes, meta)


def base_of(view: View) -> str | None:
    """The kept commit whose state the one that was looked at continues. Needs no manifest to be intact."""
    try:
        base = Facts.decode(view.facts).base
    except SnapshotCorrupt:
        return None
    return base if base in view.kept else None


def open_answer(member: Member, view: View, place: str) -> Answered | None:
    """Return what a request was answered with, None where it is unknown. Raises SnapshotCorrupt."""
    if view.answered is None:
        return None
    info, digest, reply = member.seals.open_answer(view.answered, place)
    return Answered(info, digest, reply, view.acknowledged == info.version)
