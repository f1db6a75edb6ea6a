"""What must hold after a chaos run, told from the stored states and the clients' record alone.

A turn teaches one marker, so the text that a session learned, read back out of its state, is the list of the turns that
it learned, in order. That does not rest on any list that the commit protocol keeps about itself; those are checked too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hope_memory import CommitInfo, SessionId, SessionMissing, Snapshot, SnapshotStore, StoreError, StoreUnavailable
from hope_memory.codec import KEEP_REQUESTS
from hope_memory.errors import SnapshotCorrupt, VersionMissing
from toys import make_tokenizer

from tests.chaos.turns import MARKER, Journal, Turn, marker

Name = tuple[str, str]
REQUEST_ID = "k{}"
"""How the engine names a request that has an Idempotency-Key."""
_USER = 0
_MARKER_TOKENS = len(marker(0, 0))


@dataclass
class Findings:
    """Everything that is wrong, by the promise that it breaks."""

    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PROMISES})
    num_sessions: int = 0
    num_versions: int = 0
    num_learned: int = 0

    def add(self, promise: str, what: str) -> None:
        """Note one broken promise."""
        self.faults[promise].append(what)

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.faults.values())


PROMISES = {
    "lost": "acknowledged turns lost",
    "twice": "turns learned twice",
    "order": "turns learned out of order",
    "foreign": "turns learned in a session that is not theirs",
    "forks": "forks of history",
    "torn": "torn reads",
    "counts": "turn or token counts that do not add up",
    "replays": "replayed answers that differ",
    "lineage": "faults of the lineage in the manifest",
    "risen": "deleted sessions that came back",
    "surprises": "answers that no fault explains",
    "exits": "servers that did not end on SIGTERM",
}


class Sightings:
    """Every commit that anyone has seen of each session, and reads made while the faults went on."""

    def __init__(self) -> None:
        self.commits: dict[Name, dict[str, CommitInfo]] = defaultdict(dict)
        self.torn: list[str] = []
        self.num_reads = 0

    async def look(self, store: SnapshotStore, name: Name) -> None:
        """Note a session's kept versions and read its head; a store that is away is not a fault."""
        session = SessionId(*name)
        try:
            for info in await store.versions(session):
                self.commits[name][info.version] = info
            loaded = await store.load(session)
            self.num_reads += 1
            if loaded.skipped:
                self.torn.append(f"{name[1]}: versions {loaded.skipped} were passed over")
        except SnapshotCorrupt as exc:
            self.torn.append(f"{name[1]}: {exc}")
        except (SessionMissing, VersionMissing, StoreUnavailable):
            pass


def learned_markers(snapshot: Snapshot) -> tuple[list[str], int]:
    """The markers in the text that a state says its users taught, in order, and that text's length in tokens."""
    level = snapshot.levels["journal"]
    tokens = list(memoryview(level.arrays["tokens"].data).cast("B").cast("i"))
    rows = list(memoryview(level.arrays["pieces"].data).cast("B").cast("i"))
    taught: list[int] = []
    at = 0
    for length, source in zip(rows[0::4], rows[3::4], strict=True):
        taught += tokens[at : at + length] if source == _USER else []
        at += length
    _, open_tokens, _, _, open_source, _ = snapshot.meta["journal"]
    taught += open_tokens if open_source == _USER else []
    text = make_tokenizer().decode(taught)
    return [marker(int(writer), int(number)) for writer, number in MARKER.findall(text)], len(taught)


async def check_everything(store: SnapshotStore, journal: Journal, seen: Sightings, num_late_exits: int) -> Findings:
    """Read every session back and hold it against the record."""
    findings = Findings()
    for name, turns in journal.sessions().items():
        if name in journal.deleted:
            await _check_deleted(store, name, journal.deleted[name], findings)
            continue
        await seen.look(store, name)
        await _check_session(store, name, turns, seen.commits[name], findings, name in journal.full_histories)
    for text in seen.torn:
        findings.add("torn", text)
    for text in journal.surprises:
        findings.add("surprises", text)
    for index in range(num_late_exits):
        findings.add("exits", f"server {index}")
    return findings


async def _check_session(
    store: SnapshotStore,
    name: Name,
    turns: Sequence[Turn],
    commits: Mapping[str, CommitInfo],
    findings: Findings,
    has_history: bool,
) -> None:
    session = SessionId(*name)
    acked = [turn for turn in turns if turn.is_acked]
    try:
        snapshots = await _read_all(store, session, findings)
    except SessionMissing:
        for turn in acked:
            findings.add("lost", f"{name[1]} {turn.marker}: its session is gone")
        return
    findings.num_sessions += 1
    if snapshots:
        head, snapshot = snapshots[0]
        markers, num_taught = learned_markers(snapshot)
        _check_markers(name, turns, markers, findings)
        _check_counts(name, head, len(markers), num_taught, has_history, findings)
        await _check_lineage(store, session, head, acked, findings)
    elif acked:
        findings.add("lost", f"{name[1]}: {len(acked)} turns, and no version")
    _check_chain(name, acked, commits, has_history, findings)


async def _read_all(store: SnapshotStore, session: SessionId, findings: Findings) -> list[tuple[CommitInfo, Snapshot]]:
    """Load every kept version, newest first."""
    found = []
    for info in await store.versions(session):
        try:
            loaded = await store.load(session, info.version)
        except StoreError as exc:
            findings.add("torn", f"{session.name} version {info.version}: {exc}")
            continue
        findings.num_versions += 1
        if loaded.info != info:
            findings.add("torn", f"{session.name} version {info.version}: listed and loaded facts differ")
        found.append((loaded.info, loaded.snapshot))
    return found


def _check_markers(name: Name, turns: Sequence[Turn], markers: Sequence[str], findings: Findings) -> None:
    """Each acknowledged turn once, no turn twice, none of another session, each writer's in order."""
    times = Counter(markers)
    findings.num_learned += len(times)
    own = {turn.marker: turn for turn in turns}
    for text, count in times.items():
        if count > 1:
            findings.add("twice", f"{name[1]} {text}: {count} times")
        if text not in own:
            findings.add("foreign", f"{name[1]} {text}")
    places = {text: place for place, text in enumerate(markers)}
    last: dict[int, int] = {}
    for turn in turns:
        if not turn.is_acked:
            continue
        if turn.marker not in times:
            findings.add("lost", f"{name[1]} {turn.marker}")
        elif places[turn.marker] < last.get(turn.writer, -1):
            findings.add("order", f"{name[1]} {turn.marker}")
        else:
            last[turn.writer] = places[turn.marker]


def _check_counts(
    name: Name, head: CommitInfo, num_markers: int, num_taught: int, has_history: bool, findings: Findings
) -> None:
    """The state's own counters agree with the text that it learned."""
    info = head.meta
    if num_taught != num_markers * _MARKER_TOKENS:
        findings.add("counts", f"{name[1]}: {num_taught} tokens taught in {num_markers} turns")
    if info["turn"] != num_markers:
        findings.add("counts", f"{name[1]}: turn {info['turn']}, {num_markers} turns learned")
    # A client that sends its whole conversation drops a turn whose answer it never got, so its commits may be more.
    if head.number != num_markers and not (has_history and head.number > num_markers):
        findings.add("counts", f"{name[1]}: commit number {head.number}, {num_markers} turns learned")


async def _check_lineage(
    store: SnapshotStore, session: SessionId, head: CommitInfo, acked: Sequence[Turn], findings: Findings
) -> None:
    """The latest acknowledged commits are ancestors of the head, and their requests are known by their keys."""
    for turn in acked:
        version, number = str(turn.answers[0].receipt["version_after"]), int(turn.answers[0].receipt["turn"])
        # Where a client dropped turns that it got no answer to, commits are more than turns; half leaves room for it.
        if head.number - number >= KEEP_REQUESTS // 2:
            continue
        if await store.ancestry(session, version) == "unknown":
            findings.add("lineage", f"{session.name} {turn.marker}: {version} is no ancestor of the head")
        if turn.key is not None:
            answered = await store.find_request(session, REQUEST_ID.format(turn.key))
            if answered is None or answered.info.version != version:
                findings.add("lineage", f"{session.name} {turn.marker}: its key finds {answered}, not {version}")


def _check_chain(
    name: Name, acked: Sequence[Turn], commits: Mapping[str, CommitInfo], has_history: bool, findings: Findings
) -> None:
    """All commits that were ever seen or acknowledged form one chain, and count up along it."""
    edges = {info.version: (info.parent, info.number) for info in commits.values()}
    for version, (parent, number) in edges.items():
        if parent in edges and edges[parent][1] + 1 != number:
            findings.add("forks", f"{name[1]}: {version} is number {number}, its parent {edges[parent][1]}")
    children: dict[str | None, set[str]] = defaultdict(set)
    for version, (parent, _) in edges.items():
        children[parent].add(version)
    by_version: dict[str, str] = {}
    for turn in acked:
        versions = {str(answer.receipt["version_after"]) for answer in turn.answers}
        if len(versions) > 1 or len({answer.text for answer in turn.answers}) > 1:
            findings.add("replays", f"{name[1]} {turn.marker}: {turn.answers}")
        for version in versions:
            if by_version.setdefault(version, turn.marker) != turn.marker:
                findings.add("replays", f"{name[1]} {turn.marker}: {version} answered {by_version[version]} too")
        _check_receipt(name, turn, commits, has_history, findings)
        before, after = turn.answers[0].receipt["version_before"], str(turn.answers[0].receipt["version_after"])
        if not has_history and before is not None:
            children[str(before)].add(after)
    findings.faults["forks"] += [
        f"{name[1]}: {len(after)} commits follow {before}" for before, after in children.items() if len(after) > 1
    ]
    numbers = Counter(number for _, number in edges.values())
    findings.faults["forks"] += [f"{name[1]}: {n} commits have number {k}" for k, n in numbers.items() if n > 1]


def _check_receipt(
    name: Name, turn: Turn, commits: Mapping[str, CommitInfo], has_history: bool, findings: Findings
) -> None:
    """What the receipt says of turn and tokens is what the commit says."""
    receipt = turn.answers[0].receipt
    info = commits.get(str(receipt["version_after"]))
    if info is None:
        return
    if info.meta["turn"] != receipt["turn"]:
        findings.add(
            "counts", f"{name[1]} {turn.marker}: receipt of turn {receipt['turn']}, commit {info.meta['turn']}"
        )
    parent = commits.get(str(info.parent))
    # A client that sends its whole conversation may go on from an older version than the one it follows.
    if parent is not None and parent.version == receipt["version_before"] and not has_history:
        learned = info.meta["tokens_learned"] - parent.meta["tokens_learned"]
        if learned != receipt["tokens_learned"]:
            findings.add("counts", f"{name[1]} {turn.marker}: {learned} tokens learned, receipt {receipt}")


async def _check_deleted(store: SnapshotStore, name: Name, birth: str, findings: Findings) -> None:
    """A deleted session is gone, or is another incarnation."""
    try:
        record = await store.get(SessionId(*name))
    except SessionMissing:
        return
    if record.birth == birth:
        findings.add("risen", name[1])
