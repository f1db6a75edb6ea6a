"""The checks of a chaos run find each kind of fault, and nothing where there is none."""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hope_memory import Array, CommitInfo, Level, Loaded, SessionId, SessionMissing, SessionRecord, Snapshot
from hope_memory.protocol import Answered
from toys import make_tokenizer

from tests.chaos.checks import PROMISES, REQUEST_ID, Sightings, check_everything, learned_markers
from tests.chaos.turns import Answer, Journal, Turn, marker

pytestmark = pytest.mark.anyio
NAME = ("acme", "s")


@pytest.fixture
def anyio_backend() -> str:
    """Run async tests on asyncio only."""
    return "asyncio"


def state(markers: list[str], num_open: int = 0) -> Snapshot:
    """A state whose users taught these markers, with some of the assistant's text between; the last ones still open."""
    encode = make_tokenizer().encode
    closed, still_open = markers[: len(markers) - num_open], markers[len(markers) - num_open :]
    tokens: list[int] = []
    rows: list[int] = []
    for index, text in enumerate(closed):
        for source, said in ((0, encode(text)), (1, encode("ok"))):
            tokens += said
            rows += [len(said), 1, index, source]
    level = Level(
        {
            "tokens": Array("int32", (len(tokens),), array.array("i", tokens).tobytes()),
            "pieces": Array("int32", (len(rows) // 4, 4), array.array("i", rows).tobytes()),
        }
    )
    meta: dict[str, Any] = {"journal": [0, encode("".join(still_open)), "", 1, 0, 0]}
    return Snapshot("toy", meta, {"journal": level})


@dataclass
class Shelf:
    """A store of one session in memory, as the checks see one; the tests spoil it."""

    commits: list[CommitInfo] = field(default_factory=list)
    states: dict[str, Snapshot] = field(default_factory=dict)
    birth: str = "b1"
    skipped: tuple[str, ...] = ()
    ancestors: set[str] = field(default_factory=set)
    requests: dict[str, CommitInfo] = field(default_factory=dict)

    def teach(self, markers: list[str], learned: int = 10) -> CommitInfo:
        """Commit a state that holds these markers."""
        number = len(self.commits) + 1
        meta = {"turn": len(markers), "tokens_learned": learned * len(markers)}
        parent = self.commits[-1].version if self.commits else None
        info = CommitInfo(f"v{number}", parent, number, 1.0, 10, meta)
        self.commits.append(info)
        self.states[info.version] = state(markers)
        self.ancestors.add(info.version)
        return info

    async def versions(self, session: SessionId) -> list[CommitInfo]:
        return self.commits[::-1]

    async def load(self, session: SessionId, version: str | None = None) -> Loaded:
        info = next(each for each in self.commits if version in (None, each.version))
        return Loaded(info, self.states[info.version], self.skipped)

    async def get(self, session: SessionId) -> SessionRecord:
        if not self.birth:
            raise SessionMissing(session.name)
        return SessionRecord(session, 1.0, 1.0, self.commits[-1], self.birth)

    async def find_request(self, session: SessionId, request_id: str) -> Answered | None:
        if request_id not in self.requests:
            return None
        return Answered(self.requests[request_id], b"", b"", True)

    async def ancestry(self, session: SessionId, version: str) -> str:
        return "ancestor" if version in self.ancestors else "unknown"


@dataclass
class Story:
    """What the clients recorded, beside what is stored."""

    shelf: Shelf
    journal: Journal

    def turn(self, number: int, *, is_acked: bool = True) -> Turn:
        """Record one turn of writer 1, answered with the newest commit."""
        turn = Turn(*NAME, 1, number, f"k{number}", 1)
        if is_acked:
            info = self.shelf.commits[-1]
            receipt = {"version_before": info.parent, "version_after": info.version, "turn": info.meta["turn"]}
            turn.answers.append(Answer("ok", receipt | {"tokens_learned": 10}))
            self.shelf.requests[REQUEST_ID.format(turn.key)] = info
        self.journal.add(turn)
        return turn

    async def found(self, seen: Sightings | None = None, num_late_exits: int = 0) -> set[str]:
        """The promises that the checks find broken."""
        findings = await check_everything(self.shelf, self.journal, seen or Sightings(), num_late_exits)
        return {promise for promise, faults in findings.faults.items() if faults}


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    """Three turns, acknowledged and learned."""
    story = Story(Shelf(), Journal(tmp_path / "turns"))
    for number in (1, 2, 3):
        story.shelf.teach([marker(1, each) for each in range(1, number + 1)])
        story.turn(number)
    yield story
    story.journal.close()


def test_markers_are_read_out_of_the_state() -> None:
    """Closed and open text of the user counts, the assistant's does not."""
    markers = [marker(3, 1), marker(12, 2), marker(3, 3)]

    assert learned_markers(state(markers, num_open=1)) == (markers, 30)


async def test_nothing_is_found_where_nothing_is_wrong(story: Story) -> None:
    """A turn that was given up may be learned or not."""
    story.turn(4, is_acked=False)
    story.shelf.teach([marker(1, each) for each in (1, 2, 3, 4)])
    story.turn(5, is_acked=False)

    assert await story.found() == set()


async def test_finds_a_lost_turn(story: Story) -> None:
    """An acknowledged marker that the head's text lacks is lost."""
    story.shelf.teach([marker(1, 1), marker(1, 3)])
    assert "lost" in await story.found()


async def test_finds_a_lost_session(story: Story) -> None:
    """A session that is gone loses all its turns."""

    async def missing(session: SessionId) -> list[CommitInfo]:
        raise SessionMissing(session.name)

    story.shelf.versions = missing  # type: ignore[method-assign]
    assert await story.found() == {"lost"}


async def test_finds_a_turn_learned_twice(story: Story) -> None:
    """A marker that stands twice in the text was learned twice, whether acknowledged or not."""
    story.turn(4, is_acked=False)
    story.shelf.teach([marker(1, each) for each in (1, 2, 3, 4, 4)])
    assert await story.found() == {"twice", "counts"}


async def test_finds_turns_out_of_order(story: Story) -> None:
    """A writer's acknowledged turns stand in the order in which it sent them."""
    story.shelf.teach([marker(1, each) for each in (1, 3, 2)])
    story.shelf.commits[-1] = replace(story.shelf.commits[-1], number=3)
    assert "order" in await story.found()


async def test_finds_a_foreign_turn(story: Story) -> None:
    """A marker of a turn that was never sent to this session is foreign."""
    story.shelf.teach([*(marker(1, each) for each in (1, 2, 3)), marker(2, 9)])
    assert await story.found() == {"foreign"}


async def test_finds_text_that_no_turn_taught(story: Story) -> None:
    """Tokens beside the markers do not add up."""
    story.shelf.teach([*(marker(1, each) for each in (1, 2, 3)), "more"])
    assert await story.found() == {"counts"}


async def test_finds_a_fork(story: Story) -> None:
    """Two commits that follow the same one are a fork, though only one of them is kept."""
    seen = Sightings()
    gone = CommitInfo("v3b", "v2", 3, 1.0, 10, {"turn": 3, "tokens_learned": 30})
    seen.commits[NAME]["v3b"] = gone
    assert await story.found(seen) == {"forks"}


async def test_finds_a_torn_read(story: Story) -> None:
    """A version that was passed over, now or while the faults went on, is torn."""
    story.shelf.skipped = ("v9",)
    assert await story.found() == {"torn"}


async def test_finds_replays_that_differ(story: Story) -> None:
    """Two answers to one turn name one commit and have one text."""
    turn = story.journal.turns[-1]
    turn.answers.append(replace(turn.answers[0], text="no"))
    assert await story.found() == {"replays"}


async def test_finds_a_receipt_that_does_not_add_up(story: Story) -> None:
    """The tokens that a receipt says were learned are those between the two commits."""
    story.journal.turns[-1].answers[0].receipt["tokens_learned"] = 20
    assert await story.found() == {"counts"}


async def test_finds_a_commit_that_is_no_ancestor(story: Story) -> None:
    """An acknowledged commit that the head's lineage does not know is a fault."""
    story.shelf.ancestors.remove("v2")
    assert await story.found() == {"lineage"}


async def test_finds_a_request_that_is_not_known(story: Story) -> None:
    """A key that finds nothing, or another commit, would let the turn be learned again."""
    known = story.shelf.requests.pop("kk2")
    assert await story.found() == {"lineage"}
    story.shelf.requests["kk2"] = replace(known, version="v9")
    assert await story.found() == {"lineage"}


async def test_finds_a_deleted_session_that_came_back(story: Story) -> None:
    """The same incarnation is a resurrection; another one, or none, is not."""
    story.journal.deleted[NAME] = "b1"
    assert await story.found() == {"risen"}
    story.shelf.birth = "b2"
    assert await story.found() == set()
    story.shelf.birth = ""
    assert await story.found() == set()


async def test_finds_surprises_and_late_exits(story: Story) -> None:
    """Answers that no fault explains, and servers that had to be killed, are faults of the run."""
    story.journal.surprises.append("500 internal_error")
    assert await story.found(num_late_exits=1) == {"surprises", "exits"}
    assert {"surprises", "exits"} < set(PROMISES)
