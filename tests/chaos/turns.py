"""What the clients of a chaos run did: one record a turn, appended when the turn is over, and what else was counted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MARKER = re.compile(r"w(\d{2})-(\d{5})\.")
API_KEYS = ("chaos-tenant-one", "chaos-tenant-two")


def tenant_of(api_key: str) -> str:
    """The tenant that the server makes of a key."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:16]


def marker(writer: int, turn: int) -> str:
    """The text of a turn: ten characters that no other turn of the run has."""
    return f"w{writer:02d}-{turn:05d}."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to a turn that it acknowledged: the reply's text and the memory receipt."""

    text: str
    receipt: dict[str, Any]

    @property
    def is_replay(self) -> bool:
        """Whether it repeats an answer that was given before."""
        return bool(self.receipt.get("replayed"))


@dataclass(slots=True)
class Turn:
    """A turn as its client saw it. `answers`: one for each server that acknowledged it; none: it was given up."""

    tenant: str
    session: str
    writer: int
    number: int
    key: str | None
    num_tries: int = 0
    answers: list[Answer] = field(default_factory=list)

    @property
    def marker(self) -> str:
        """The turn's text."""
        return marker(self.writer, self.number)

    @property
    def is_acked(self) -> bool:
        """Whether any server said that it is done."""
        return bool(self.answers)


class Journal:
    """The append-only record of turns, in memory and as lines of JSON in a file; and what else was counted."""

    def __init__(self, path: Path) -> None:
        self.turns: list[Turn] = []
        self.counts: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.surprises: list[str] = []
        self.full_histories: set[tuple[str, str]] = set()
        self.deleted: dict[tuple[str, str], str] = {}
        self._file = path.open("a", encoding="utf-8")

    def add(self, turn: Turn) -> None:
        """Record a turn that is over."""
        self.turns.append(turn)
        self._file.write(json.dumps(asdict(turn)) + "\n")
        self._file.flush()

    def sessions(self) -> dict[tuple[str, str], list[Turn]]:
        """The turns of each session (tenant, name), in the order they ended."""
        found: dict[tuple[str, str], list[Turn]] = {}
        for turn in self.turns:
            found.setdefault((turn.tenant, turn.session), []).append(turn)
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()
