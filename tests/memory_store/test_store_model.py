"""Random histories: the store agrees with a model of plain dictionaries after every step."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hope_memory import (
    Array,
    CommitInfo,
    Level,
    Request,
    SessionId,
    SessionMissing,
    Snapshot,
    SnapshotStore,
    VersionConflict,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.memory_store.conftest import Backend

KEEP = 3
NAMES = st.sampled_from(["a", "b", "c"])
LEVELS = ("fast", "slow")


@dataclass
class ModelSession:
    """Versions kept, oldest first; the number of its last commit; what each request answered."""

    kept: list[tuple[CommitInfo, dict[str, int]]] = field(default_factory=list)
    requests: dict[int, CommitInfo] = field(default_factory=dict)

    @property
    def head(self) -> str | None:
        """The newest version."""
        return self.kept[-1][0].version if self.kept else None

    def add(self, info: CommitInfo, blobs: dict[str, int]) -> None:
        """Append a commit and drop the oldest beyond KEEP."""
        self.kept = [*self.kept, (info, blobs)][-KEEP:]


class StoreMachine(RuleBasedStateMachine):
    """Two stores on one storage, used by turns, against the model. `blob` numbers stand for written levels."""

    def __init__(self, make_backend: Callable[[Path], Backend]) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.backend = make_backend(self.folder)
        self.model: dict[str, ModelSession] = {}
        self.num_blobs = 0

    @initialize()
    def open(self) -> None:
        """Open both stores in one loop."""
        self.runner = asyncio.Runner()
        self.stores = [self.backend.store(keep_versions=KEEP) for _ in range(2)]
        for store in self.stores:
            self.runner.run(store.open())

    def teardown(self) -> None:
        """Close what was opened."""
        if hasattr(self, "stores"):
            for store in self.stores:
                self.runner.run(store.close())
            self.runner.close()
        shutil.rmtree(self.folder)

    def store(self, which: bool) -> SnapshotStore:
        """Return one of the two stores."""
        return self.stores[which]

    def snapshot(self, blobs: dict[str, int]) -> Snapshot:
        """Return a snapshot whose levels hold their blob numbers."""
        levels = {
            name: Level({"w": Array("int64", (), number.to_bytes(8, "little"))}) for name, number in blobs.items()
        }
        return Snapshot("toy-1", {"info": {"blobs": blobs}}, levels)

    @rule(which=st.booleans(), name=NAMES, unchanged=st.sets(st.sampled_from(LEVELS)), request=st.integers(0, 9))
    def commit(self, which: bool, name: str, unchanged: set[str], request: int) -> None:
        """Commit to the head, with or without unchanged levels, under a request id that may repeat."""
        session = self.model.setdefault(name, ModelSession())
        blobs = dict(session.kept[-1][1]) if session.kept else {}
        unchanged &= blobs.keys()
        fresh = {level: self.num_blobs + index for index, level in enumerate(LEVELS) if level not in unchanged}
        self.num_blobs += len(LEVELS)
        blobs |= fresh
        work = self.store(which).commit(
            SessionId("t", name), session.head, self.snapshot(blobs), frozenset(unchanged), Request(str(request))
        )
        info = self.runner.run(work)
        if request in session.requests:
            assert info == session.requests[request]
        else:
            session.add(info, blobs)
            session.requests[request] = info

    @rule(which=st.booleans(), name=NAMES, data=st.data())
    def commit_to_a_stale_parent(self, which: bool, name: str, data: st.DataObject) -> None:
        """A commit to anything but the head is refused."""
        session = self.model.get(name)
        known = [info.version for other in self.model.values() for info, _ in other.kept]
        head = session.head if session else None
        parent = data.draw(st.sampled_from([*sorted(set(known) - {head}), "0" * 32]))
        expected = SessionMissing if session is None else VersionConflict
        with pytest.raises(expected):
            self.runner.run(self.store(which).commit(SessionId("t", name), parent, self.snapshot({"fast": 0})))

    @rule(which=st.booleans(), name=NAMES, data=st.data())
    def rollback(self, which: bool, name: str, data: st.DataObject) -> None:
        """Roll back to any kept version."""
        session = self.model.get(name)
        if session is not None and session.kept:
            info, blobs = data.draw(st.sampled_from(session.kept))
            session.add(self.runner.run(self.store(which).rollback(SessionId("t", name), info.version)), blobs)

    @rule(which=st.booleans(), name=NAMES, new_name=NAMES, data=st.data())
    def fork(self, which: bool, name: str, new_name: str, data: st.DataObject) -> None:
        """Fork any kept version under a free name."""
        session = self.model.get(name)
        if session is not None and session.kept and new_name not in self.model:
            info, blobs = data.draw(st.sampled_from(session.kept))
            record = self.runner.run(self.store(which).fork(SessionId("t", name), new_name, info.version))
            assert record.head is not None
            self.model[new_name] = ModelSession([(record.head, blobs)])

    @rule(which=st.booleans(), name=NAMES)
    def delete(self, which: bool, name: str) -> None:
        """Delete a session or find that there is none."""
        existed = self.runner.run(self.store(which).delete(SessionId("t", name)))
        assert existed == (self.model.pop(name, None) is not None)

    @invariant()
    def store_is_as_the_model(self) -> None:
        """Sessions, versions, states and the number of stored blobs are those of the model."""
        if not hasattr(self, "stores"):
            return
        store = self.stores[0]
        records = self.runner.run(store.list("t"))
        assert sorted(record.session.name for record in records) == sorted(self.model)
        for name, session in self.model.items():
            versions = self.runner.run(store.versions(SessionId("t", name)))
            assert versions == [info for info, _ in reversed(session.kept)]
            for info, blobs in session.kept[-1:] + session.kept[:1]:
                loaded = self.runner.run(store.load(SessionId("t", name), info.version))
                assert (loaded.info, loaded.snapshot.levels) == (info, self.snapshot(blobs).levels)
        kept = [blobs for session in self.model.values() for _, blobs in session.kept]
        named = {item for blobs in kept for item in blobs.items()}
        assert self.backend.count_blobs() == len(named)


def test_random_histories_agree_with_the_model(make_backend: Callable[[Path], Backend]) -> None:
    """After any sequence of commits, retries, conflicts, roll-backs, forks and deletes the store is as the model."""
    effort = settings(max_examples=30, stateful_step_count=25, deadline=None)
    run_state_machine_as_test(lambda: StoreMachine(make_backend), settings=effort)
