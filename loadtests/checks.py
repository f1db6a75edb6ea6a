"""What must hold after a load run, told from the ledger and from what the API says of every session. Pure functions.

Acknowledged turns name the version they found and the one they made. Together they are a path from a session's birth to
its newest version, whatever scenario it was; the session's own counters and its list of turns must say the same.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtests.ledger import Account, Answer, Birth, Name, Record

PROMISES = {
    "lost": "acknowledged turns lost",
    "twice": "turns learned twice",
    "stale": "answers from an older version than was acknowledged",
    "moved": "sessions that say another thing on another server",
    "forks": "forks of history",
    "counts": "turn or token counts that do not add up",
    "replays": "replayed answers that differ",
    "foreign": "sessions seen by another tenant",
    "risen": "deleted sessions that came back",
    "dishonest": "5xx other than a 503 with Retry-After",
    "surprises": "answers that no load explains",
    "unsettled": "turns or questions that got no answer, however often sent",
    "exits": "servers that ended by themselves, or not when told",
}

_MAX_LISTED = 32
"""Turns that a session tells of."""

KEPT_REQUESTS = 60
"""Commits after which a repeated request may be learned again; the server promises a few more."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A session as the API shows it at the end; `info` None: it is not there. Versions and turns newest first."""

    info: Mapping[str, Any] | None
    versions: Sequence[Mapping[str, Any]] = ()
    turns: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Findings:
    """Everything that is wrong, by the promise that it breaks; and how much was looked at."""

    faults: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in PROMISES})
    num_sessions: int = 0
    num_acknowledged: int = 0
    num_unknown: int = 0

    def add(self, promise: str, what: str) -> None:
        """Note one broken promise."""
        self.faults[promise].append(what)

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.faults.values())


def check_everything(account: Account, seen: Mapping[Name, Seen]) -> Findings:
    """Hold what was seen of the sessions against the ledger. Sessions that were not looked at are left out."""
    findings = Findings()
    for promise, what in account.faults:
        findings.add(promise, what)
    for what, count in Counter(account.dishonest).items():
        findings.add("dishonest", f"{what}: {count} times")
    for name, records in account.sessions().items():
        if name in account.deleted:
            if name in seen and seen[name].info is not None:
                findings.add("risen", name[1])
            continue
        check_answers(name, records, findings)
        if name in seen:
            check_session(name, records, account.births.get(name), seen[name], findings)
    return findings


def check_answers(name: Name, records: Sequence[Record], findings: Findings) -> None:
    """One turn has one version and one text, however often it was answered; two turns have two versions."""
    by_version: dict[str, str] = {}
    for record in records:
        if record.is_open and record.has_ended:
            findings.add("unsettled", f"{name[1]} {record.key}")
        learned = [answer for answer in record.answers if answer.is_learned]
        versions = {str(answer.version_after) for answer in learned}
        if len(versions) > 1:
            findings.add("twice", f"{name[1]} {record.key}: versions {', '.join(sorted(versions))}")
        elif len({(answer.text, answer.turn, answer.tokens_learned) for answer in record.answers}) > 1:
            findings.add("replays", f"{name[1]} {record.key}: {len(record.answers)} answers that differ")
        for version in versions:
            if by_version.setdefault(version, record.key) != record.key:
                findings.add("replays", f"{name[1]} {record.key}: {version} answered {by_version[version]} too")


def check_session(name: Name, records: Sequence[Record], birth: Birth | None, seen: Seen, findings: Findings) -> None:
    """Every acknowledged turn is in the session once, and nothing else is."""
    learned = [answer for record in records for answer in record.answers[:1] if answer.is_learned]
    num_unknown = sum(record.is_open or _is_late(record, learned) for record in records)
    findings.num_sessions += 1
    findings.num_acknowledged += len(learned)
    findings.num_unknown += num_unknown
    if seen.info is None:
        for answer in learned:
            findings.add("lost", f"{name[1]} turn {answer.turn}: the session is gone")
        return
    start, first_number = (birth.version, birth.number) if birth is not None else (None, 0)
    number = int(seen.versions[0]["number"]) if seen.versions else first_number
    num_commits = number - first_number
    if num_commits < len(learned):
        findings.add("lost", f"{name[1]}: {len(learned)} turns acknowledged, {num_commits} commits")
    if num_commits > len(learned) + num_unknown:
        findings.add("twice", f"{name[1]}: {len(learned)} turns acknowledged, {num_commits} commits")
    check_versions(name, seen.versions, findings)
    path = path_of(name, start, learned, num_unknown, findings)
    if num_unknown == 0:
        _check_end(name, path, start, seen, findings)
        _check_turns(name, path, seen, findings)
        _check_counts(name, path, birth, records, seen, findings)


def _is_late(record: Record, learned: Sequence[Answer]) -> bool:
    """Whether so much happened while the turn was unanswered that its first try may be forgotten."""
    if not record.answers:
        return False
    end = record.answers[0].at
    return sum(record.began <= answer.at <= end for answer in learned) > KEPT_REQUESTS


def check_versions(name: Name, versions: Sequence[Mapping[str, Any]], findings: Findings) -> None:
    """The kept versions are one line, each the parent of the next, numbered without a gap."""
    for newer, older in itertools.pairwise(versions):
        if newer["parent"] != older["version"] or newer["number"] != older["number"] + 1:
            findings.add("forks", f"{name[1]}: {newer['version']} does not follow {older['version']}")


def path_of(
    name: Name, start: str | None, learned: Sequence[Answer], num_unknown: int, findings: Findings
) -> list[Answer]:
    """Put acknowledged turns in the order of their commits; only a turn without an answer may leave a gap."""
    after: dict[str | None, list[Answer]] = defaultdict(list)
    for answer in learned:
        after[answer.version_before].append(answer)
    for before, answers in after.items():
        if len(answers) > 1:
            findings.add("forks", f"{name[1]}: {len(answers)} acknowledged turns follow version {before}")
    made = {answer.version_after for answer in learned}
    heads = [before for before in after if before not in made]
    num_gaps = sum(before != start for before in heads)
    if num_gaps > num_unknown:
        findings.add("lost", f"{name[1]}: {num_gaps} gaps in its history, {num_unknown} turns without an answer")
    path: list[Answer] = []
    at = start
    # Each step uses one answer up, so that a ring in what a server said ends too.
    while after.get(at):
        path.append(after[at].pop(0))
        at = path[-1].version_after
    return path


def _check_end(name: Name, path: Sequence[Answer], start: str | None, seen: Seen, findings: Findings) -> None:
    assert seen.info is not None
    end = path[-1].version_after if path else start
    if seen.info["version"] != end:
        findings.add("lost", f"{name[1]}: it is at version {seen.info['version']}, {end} was acknowledged last")
    kept = [str(version["version"]) for version in reversed(seen.versions)]
    told = [start, *(answer.version_after for answer in path)]
    if kept and kept != told[-len(kept) :]:
        findings.add("lost", f"{name[1]}: its versions are not those that were acknowledged")


def _check_turns(name: Name, path: Sequence[Answer], seen: Seen, findings: Findings) -> None:
    """The session's own list of its last turns has each acknowledged one once, with the same counts."""
    listed = [(turn["turn"], turn["tokens_read"], turn["tokens_learned"]) for turn in reversed(seen.turns)]
    told = [(answer.turn, answer.tokens_read, answer.tokens_learned) for answer in path]
    expected = told[-len(listed) :] if listed else []
    # A list shorter than what was acknowledged is one that is full.
    if listed != expected or (len(listed) < len(told) and len(listed) < _MAX_LISTED):
        kind = "twice" if any(count > 1 for count in Counter(listed).values()) else "lost"
        findings.add(kind, f"{name[1]}: it lists {len(listed)} turns that are not the {len(told)} acknowledged")


def _check_counts(
    name: Name, path: Sequence[Answer], birth: Birth | None, records: Sequence[Record], seen: Seen, findings: Findings
) -> None:
    assert seen.info is not None
    if path and seen.info["turn"] != path[-1].turn:
        findings.add("counts", f"{name[1]}: it is at turn {seen.info['turn']}, {path[-1].turn} was acknowledged last")
    if any(record.resends for record in records):
        # An edit goes back to an earlier turn and takes its counters.
        return
    turns = [answer.turn for answer in path]
    if turns and turns != list(range(turns[0], turns[0] + len(turns))):
        findings.add("counts", f"{name[1]}: turns are not numbered one after the other")
    if birth is not None:
        return
    if turns and turns[0] != 1:
        findings.add("counts", f"{name[1]}: its first turn is number {turns[0]}")
    told = sum(answer.tokens_learned for answer in path)
    if seen.info["tokens_learned"] != told:
        findings.add("counts", f"{name[1]}: {seen.info['tokens_learned']} tokens learned, receipts say {told}")
