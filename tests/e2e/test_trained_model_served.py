"""A folder of a trained HOPE model is all that a server needs: it chats, remembers, and goes on after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from taking import chat_request, end_of, learn, take, text_of
from toys import CONFIG, FAMILIES, FAST, KEY, MODEL, family_params, toy_settings, write_trained

from hope_server.engine.assembly import build_engine, hope_config
from hope_server.engine.turn import ScoreRequest
from hope_server.errors import CheckpointError, SettingsError, StateIncompatible
from hope_server.model import checkpoint
from hope_server.model.config import HopeConfig, WindowSpec
from hope_server.settings import Settings

HOPE = FAMILIES["hope"]
WITH_LEVELS = FAMILIES["hope, online levels"]


def written(tmp_path: Path, config: HopeConfig, name: str = "model") -> str:
    """The path of a trained toy in float16."""
    return str(write_trained(tmp_path / name, config, family_params(config, torch.float32)))


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["hope", "hope, online levels", "titans", "delta", "transformer"])
async def test_a_folder_is_served_with_the_settings_a_server_has(tmp_path: Path, name: str) -> None:
    """With no more settings than model and store a session chats and learns, and a restarted server goes on with it."""
    config = replace(FAMILIES[name], window=WindowSpec(512, 0))
    settings = Settings(model=written(tmp_path, config), store=str(tmp_path / "store.db"), consolidation="explicit")
    engine = build_engine(settings)
    assert engine.model_id == MODEL.name
    await engine.start()
    await learn(engine, "Mira keeps the violin in the red barn.", passes=0)
    before = await engine.score(ScoreRequest((" red barn.",), prompt="Mira keeps", session=KEY))
    ours = await take(engine.chat(chat_request("Where is it?")))
    assert end_of(ours).receipt.tokens_read > 0
    await engine.stop()
    again = build_engine(settings)
    await again.start()
    (first, *_) = await again.session_versions(KEY)
    await again.rollback_session(KEY, (await again.session_versions(KEY))[-1]["version"])
    assert first["turn"] == 2
    assert await again.score(ScoreRequest((" red barn.",), prompt="Mira keeps", session=KEY)) == before
    assert text_of(await take(again.chat(chat_request("Where is it?")))) == text_of(ours)
    await again.stop()


@pytest.mark.anyio
async def test_a_packaged_model_is_served_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place, without a cache."""
    monkeypatch.setattr(checkpoint, "OWN_MODELS", {"tiny": written(tmp_path, HOPE)})
    settings = Settings(model="tiny", store=str(tmp_path / "store.db"), cache_dir=tmp_path / "cache")
    engine = build_engine(settings)
    await engine.start()
    assert end_of(await take(engine.chat(chat_request("Hello")))).receipt.tokens_learned > 0
    await engine.stop()
    assert not (tmp_path / "cache").exists()


@pytest.mark.anyio
async def test_another_training_of_the_model_does_not_open_its_sessions(tmp_path: Path) -> None:
    """The fingerprint is of the weights: memories of one mean nothing to another."""
    settings = Settings(model=written(tmp_path, HOPE), store=str(tmp_path / "store.db"))
    engine = build_engine(settings)
    await engine.start()
    await learn(engine, "Mira keeps the violin.")
    await engine.stop()
    retrained = write_trained(tmp_path / "new", HOPE, family_params(HOPE, torch.float32, seed=1))
    other = build_engine(settings.model_copy(update={"model": str(retrained)}))
    await other.start()
    with pytest.raises(StateIncompatible):
        await learn(other, "Otto sleeps.")
    await other.stop()


# -- what settings may change ----------------------------------------------------------------------------------------


def test_without_attention_a_model_is_what_its_folder_says(tmp_path: Path) -> None:
    """Neither the window nor consolidation's settings apply; by default it has the levels that it was trained with."""
    for name, config in (("plain", HOPE), ("levels", WITH_LEVELS)):
        model = written(tmp_path, config, name)
        for changes in ({}, {"window": 16}, {"consolidation_block": 100, "consolidation_delay": 7}):
            settings = Settings(model=model, store=str(tmp_path / "store.db"), **changes)
            assert hope_config(settings, Path(model)) == config
            assert build_engine(settings).model_id == MODEL.name


def test_an_operator_may_replace_the_levels_of_a_trained_model(tmp_path: Path) -> None:
    """By `off` or by a file; weights that levels of the same name began with stay behind."""
    model = written(tmp_path, WITH_LEVELS)
    (tmp_path / "levels.yaml").write_text(
        "[{name: fast, blocks: [0], rank: 5, schedule: online, update_period: 16, lr: 0.01},"
        " {name: slow, blocks: [1], rank: 2, update_period: 64}]"
    )
    off = Settings(model=model, store=str(tmp_path / "store.db"), levels="off")
    assert hope_config(off, Path(model)).levels == ()
    assert build_engine(off).model_id == MODEL.name
    filed = Settings(model=model, store=str(tmp_path / "store.db"), levels=str(tmp_path / "levels.yaml"))
    found = hope_config(filed, Path(model))
    assert [(spec.name, spec.rank) for spec in found.levels] == [("fast", 5), ("slow", 2)]
    assert replace(found, levels=WITH_LEVELS.levels) == WITH_LEVELS
    assert build_engine(filed).model_id == MODEL.name
    uneven = Settings(model=model, store=str(tmp_path / "store.db"), levels=filed.levels, consolidation_block=100)
    with pytest.raises(SettingsError, match="must be multiples of 8 tokens"):
        build_engine(uneven)


def test_a_trained_model_with_attention_has_its_own_window_unless_told(tmp_path: Path) -> None:
    """The window of its training, or the operator's; without levels of its own it has the usual ones, by its chunks."""
    config = replace(CONFIG, levels=(), window=WindowSpec(600, 1))
    model = written(tmp_path, config)
    found = hope_config(Settings(model=model, store="x"), Path(model))
    assert found.window == WindowSpec(600, 1)
    assert {spec.name: spec.update_period for spec in found.levels} == {"fast": 64, "slow": 256}
    assert hope_config(Settings(model=model, store="x", window=700), Path(model)).window == WindowSpec(700, 1)
    own = written(tmp_path, replace(config, levels=(FAST,)), "own")
    assert hope_config(Settings(model=own, store="x"), Path(own)).levels == (FAST,)
    odd = written(tmp_path, replace(config, chunk_size=48), "odd")
    levels = hope_config(Settings(model=odd, store="x", consolidation_block=288), Path(odd)).levels
    assert {spec.name: spec.update_period for spec in levels} == {"fast": 48, "slow": 288}


def test_a_damaged_folder_does_not_start(tmp_path: Path) -> None:
    """One line, before anything is served."""
    folder = Path(written(tmp_path, HOPE))
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"conv_size"', '"conv_sizes"'))
    with pytest.raises(CheckpointError, match="incomplete or was changed"):
        build_engine(toy_settings(tmp_path / "store.db", model=str(folder)))
