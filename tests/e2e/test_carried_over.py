"""A session in a file: exported from one store, imported in another, and the same from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from taking import chat, chat_request, end_of, learn, take, text_of
from toys import KEY, SERVED, make_params, make_tokenizer, toy_engine, toy_settings

from hope_server.engine.assembly import assemble
from hope_server.engine.engine import Engine
from hope_server.engine.turn import SessionKey
from hope_server.errors import InvalidRequest, SessionExists, SessionNotFound, StateIncompatible, VersionNotFound

pytestmark = pytest.mark.anyio
COPY = SessionKey("other", "copy")


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running toy engine whose session has learned a text."""
    engine = toy_engine(tmp_path / "store.db")
    await engine.start()
    await learn(engine, "Mira keeps the violin in the red barn. ")
    yield engine
    await engine.stop()


async def test_an_import_goes_on_exactly_as_the_export_would(engine: Engine, tmp_path: Path) -> None:
    """In another store, under another name and tenant, the session says the same words."""
    version, data = await engine.export_session(KEY)
    other = toy_engine(tmp_path / "other.db")
    await other.start()
    info = await other.import_session(KEY, data)
    assert info.turn == (await engine.get_session(KEY)).turn
    assert (await engine.get_session(KEY)).version == version
    here = await take(engine.chat(chat_request("Where is it?")))
    there = await take(other.chat(chat_request("Where is it?")))
    assert text_of(there) == text_of(here)
    assert end_of(there).receipt.loss_before == end_of(here).receipt.loss_before
    await other.stop()


async def test_an_older_version_can_be_exported(engine: Engine) -> None:
    """By its name; one that is not kept is VersionNotFound."""
    (old,) = await engine.session_versions(KEY)
    await chat(engine)
    version, data = await engine.export_session(KEY, old["version"])
    assert version == old["version"]
    assert (await engine.import_session(COPY, data)).turn == 1
    with pytest.raises(VersionNotFound):
        await engine.export_session(KEY, "f" * 32)


async def test_a_taken_id_is_refused_and_stays_as_it_is(engine: Engine) -> None:
    """Import never overwrites, not even an empty session."""
    _, data = await engine.export_session(KEY)
    with pytest.raises(SessionExists):
        await engine.import_session(KEY, data)
    await engine.create_session(COPY)
    with pytest.raises(SessionExists):
        await engine.import_session(COPY, data)
    assert (await engine.get_session(COPY)).version is None


async def test_what_does_not_verify_makes_no_session(engine: Engine) -> None:
    """A flipped bit, a missing end and something else altogether are refused."""
    _, data = await engine.export_session(KEY)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for bad in (bytes(flipped), data[:-1], data + b"x", b"", b"PK\x03\x04"):
        with pytest.raises(InvalidRequest, match="not a whole, unaltered export"):
            await engine.import_session(COPY, bad)
    with pytest.raises(SessionNotFound):
        await engine.get_session(COPY)


async def test_another_model_is_refused(engine: Engine, tmp_path: Path) -> None:
    """A state means nothing to other weights."""
    _, data = await engine.export_session(KEY)
    params = make_params(torch.float32, seed=1)
    other = assemble(toy_settings(tmp_path / "other.db"), SERVED, params, make_tokenizer(), "other-weights")
    await other.start()
    with pytest.raises(StateIncompatible):
        await other.import_session(COPY, data)
    with pytest.raises(SessionNotFound):
        await other.get_session(COPY)
    await other.stop()


async def test_a_fork_can_start_from_an_older_version(engine: Engine) -> None:
    """The fork is at that version's turn; a taken id and an unknown version are refused."""
    (old,) = await engine.session_versions(KEY)
    await chat(engine)
    assert (await engine.fork_session(KEY, "copy", old["version"])).turn == 1
    with pytest.raises(SessionExists):
        await engine.fork_session(KEY, "copy")
    with pytest.raises(VersionNotFound):
        await engine.fork_session(KEY, "copy2", "f" * 32)
