"""What users sent and what was acknowledged: lines of JSON, one file a process, and how they are read back.

A turn begins with one line and ends with another; a process that is killed leaves a beginning without an end. Turns
that were not answered when their user was stopped end with their body, so that they can be sent again later.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Name = tuple[int, str]
"""A session: the number of its tenant, and its id."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What acknowledged a turn. Times in milliseconds; None where there was nothing to measure.

    ttft_ms: to the first text; tpot_ms: mean from one token to the next; at: Unix seconds.
    """

    version_before: str | None
    version_after: str | None
    turn: int
    tokens_read: int
    tokens_learned: int
    is_replay: bool
    not_learned: str | None
    restored_from: str
    text: str
    at: float
    total_ms: float
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    num_tokens: int = 0

    @property
    def is_learned(self) -> bool:
        """Whether the receipt says that the session has a new version."""
        return self.not_learned is None and self.version_after not in (None, self.version_before)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request that may teach. key: its Idempotency-Key. resends: its body holds the whole conversation."""

    tenant: int
    session: str
    key: str
    kind: str
    path: str
    body: dict[str, Any]
    resends: bool = False


@dataclass(slots=True)
class Record:
    """A turn as the ledger tells of it. body: of one that ended without an answer. refused: a final answer's code."""

    name: Name
    key: str
    kind: str
    scenario: str
    began: float
    path: str = ""
    resends: bool = False
    has_ended: bool = False
    answers: list[Answer] = field(default_factory=list)
    refused: str | None = None
    body: dict[str, Any] | None = None

    @property
    def is_open(self) -> bool:
        """Whether it may have been learned or not."""
        return not self.answers and self.refused is None

    @property
    def turn(self) -> Turn | None:
        """The turn, to be sent again; None where its body is not known."""
        if self.body is None:
            return None
        return Turn(*self.name, self.key, self.kind, self.path, self.body, self.resends)


@dataclass(slots=True)
class Birth:
    """The version that a fork began with: its name and its number."""

    version: str
    number: int


@dataclass(slots=True)
class Account:
    """Everything that the ledgers tell."""

    turns: dict[str, Record] = field(default_factory=dict)
    births: dict[Name, Birth] = field(default_factory=dict)
    deleted: set[Name] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    dishonest: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def sessions(self) -> dict[Name, list[Record]]:
        """The turns of each session, in the order in which they began."""
        found: dict[Name, list[Record]] = defaultdict(list)
        for record in sorted(self.turns.values(), key=lambda record: record.began):
            found[record.name].append(record)
        return dict(found)


class Ledger:
    """One process' lines; every line is in the file when its call returns."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def begin(self, turn: Turn, scenario: str) -> None:
        """Note a turn before its first byte is sent."""
        self._write(
            "begin",
            name=[turn.tenant, turn.session],
            key=turn.key,
            kind=turn.kind,
            scenario=scenario,
            path=turn.path,
            resends=turn.resends,
        )

    def end(self, turn: Turn, answers: Iterable[Answer], refused: str | None = None) -> None:
        """Note what became of it: its answers, or a final refusal, or neither."""
        found = [asdict(answer) for answer in answers]
        body = None if found or refused is not None else turn.body
        self._write("end", key=turn.key, answers=found, refused=refused, body=body)

    def refusal(self, what: str, *, is_honest: bool) -> None:
        """Note an error answer, by status and code."""
        self._write("refusal", what=what, is_honest=is_honest)

    def birth(self, name: Name, birth: Birth) -> None:
        """Note where a fork begins."""
        self._write("birth", name=list(name), **asdict(birth))

    def deleted(self, name: Name) -> None:
        """Note that a session was deleted."""
        self._write("deleted", name=list(name))

    def fault(self, promise: str, what: str) -> None:
        """Note a promise that a user saw broken."""
        self._write("fault", promise=promise, what=what)

    def count(self, what: str) -> None:
        """Count something that a user did."""
        self._write("count", what=what)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, event: str, **facts: object) -> None:
        line = json.dumps({"event": event, "at": time.time(), **facts}) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()


def read_ledgers(folder: Path) -> Account:
    """Read every ledger of a folder."""
    account = Account()
    # A turn may begin in one process and be sent again by another: beginnings first, whatever file they are in.
    for path in sorted(folder.glob("*.jsonl")):
        for line in _lines(path):
            if line["event"] == "begin":
                _begin(account, line)
    for path in sorted(folder.glob("*.jsonl")):
        for line in _lines(path):
            _note(account, line)
    for record in account.turns.values():
        # Of two requests at once the one that gets the answer again may be the first to hear it.
        record.answers.sort(key=lambda answer: answer.is_replay)
    return account


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for text in file:
            # A process that was killed may have left half of its last line.
            if text.endswith("\n"):
                yield json.loads(text)


def _begin(account: Account, line: Mapping[str, Any]) -> None:
    name: Name = (int(line["name"][0]), str(line["name"][1]))
    record = Record(name, line["key"], line["kind"], line["scenario"], line["at"], line["path"], line["resends"])
    first = account.turns.setdefault(record.key, record)
    first.began = min(first.began, record.began)


def _note(account: Account, line: Mapping[str, Any]) -> None:
    event = line["event"]
    if event == "end":
        record = account.turns[line["key"]]
        record.has_ended = True
        record.answers += [Answer(**answer) for answer in line["answers"]]
        record.refused = line["refused"] or record.refused
        record.body = line["body"] or record.body
    elif event == "refusal":
        account.refusals[line["what"]] += 1
        if not line["is_honest"]:
            account.dishonest.append(line["what"])
    elif event == "birth":
        account.births[(line["name"][0], line["name"][1])] = Birth(line["version"], line["number"])
    elif event == "deleted":
        account.deleted.add((line["name"][0], line["name"][1]))
    elif event == "fault":
        account.faults.append((line["promise"], line["what"]))
    elif event == "count":
        account.counts[line["what"]] += 1
