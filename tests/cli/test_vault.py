"""`hope vault`: a new key wraps, sessions stay readable, servers that run notice."""

from __future__ import annotations

import asyncio
import json

import pytest
from hope_memory import SessionId, Snapshot, open_store
from hope_memory.key_file import KeyRing

from hope_server.cli import main

ADA = SessionId("default", "ada")


@pytest.fixture
def store(tmp_path):
    """The path of a store with one session."""
    path = tmp_path / "s.db"

    async def fill() -> None:
        store = open_store(str(path))
        await store.open()
        await store.commit(ADA, None, Snapshot("model", {"info": {"turn": 1}}, {}))
        await store.close()

    asyncio.run(fill())
    return path


async def _turn(store) -> int:
    record = await store.get(ADA)
    return (await store.load(ADA)).snapshot.info["turn"] + (record.head is None)


def _act(store, capsys, action: str) -> tuple[dict, list[str]]:
    """Run `hope vault ACTION`; returns its report and the ids in the key file."""
    assert main(["vault", action, "--store", str(store), "--json"]) == 0
    return json.loads(capsys.readouterr().out), list(KeyRing.load(store.with_name("s.key")).keys)


@pytest.mark.parametrize("steps", [["rotate"], ["new", "rewrap", "prune"]])
def test_a_new_key_opens_what_the_old_one_did(store, capsys, steps):
    """The last key of the file is another, each session's keys are wrapped with it, and the store is read as before."""
    before = KeyRing.load(store.with_name("s.key"))
    num_wrapped = 0
    for step in steps:
        report, keys = _act(store, capsys, step)
        num_wrapped += report["num_wrapped"]
    assert (keys, num_wrapped) == ([report["key"]], 1)
    assert keys != list(before.keys)
    assert KeyRing.load(store.with_name("s.key")).names == before.names

    async def read() -> int:
        opened = open_store(str(store))
        await opened.open()
        try:
            return await _turn(opened)
        finally:
            await opened.close()

    assert asyncio.run(read()) == 1


def test_a_key_that_is_needed_is_not_pruned(store, capsys):
    """Pruning wraps with the last key what is not, before it removes the others."""
    _, before = _act(store, capsys, "new")
    report, after = _act(store, capsys, "prune")
    assert (report["num_wrapped"], after) == (1, before[1:])


def test_a_server_that_runs_goes_on_while_keys_are_replaced(store, capsys):
    """A store that was opened before reads and writes after each step."""

    async def go_on() -> list[int]:
        running = open_store(str(store))
        await running.open()
        turns = [await _turn(running)]
        for step in ("new", "rewrap", "prune", "rotate"):
            await asyncio.to_thread(_act, store, capsys, step)
            tip = (await running.get(ADA)).tip
            await running.commit(ADA, tip, Snapshot("model", {"info": {"turn": turns[-1] + 1}}, {}))
            turns.append(await _turn(running))
        _, is_new = await running.create(SessionId("default", step))
        await running.close()
        assert is_new
        return turns

    assert asyncio.run(go_on()) == [1, 2, 3, 4, 5]


def test_there_is_nothing_to_rotate_before_the_first_start(failure_line, tmp_path):
    """Without a key file the command says so and makes none."""
    assert main(["vault", "rotate", "--store", str(tmp_path / "s.db")]) == 1
    assert "there is no key file" in failure_line()
    assert list(tmp_path.iterdir()) == []
