"""What a HopeConfig refuses, and that the message names the level and the rule."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from hope_server.errors import SettingsError
from hope_server.model.config import HopeConfig, LevelSpec, ModelConfig, WindowSpec

MODEL = ModelConfig("toy", 300, 32, 48, 4, 4, 2, 8, 10_000.0, 1e-5, 4096, True)
LEVEL = LevelSpec("slow", (1, 2), update_period=16)
WINDOW = WindowSpec(32, 2)


def test_levels_that_fit_are_kept_in_order() -> None:
    """Blocks may be shared by levels; a consolidated block may take half the window, an online period any length."""
    online = LevelSpec("fast", (2, 3), schedule="online", update_period=64)
    config = HopeConfig(MODEL, WINDOW, (LEVEL, online), 8)
    assert [level.name for level in config.levels] == ["slow", "fast"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "no good"}, "plain identifier"),
        ({"name": ""}, "plain identifier"),
        ({"blocks": ()}, r"blocks must lie in 0\.\.3, got \(\)"),
        ({"blocks": (0, 4)}, r"blocks must lie in 0\.\.3, got \(0, 4\)"),
        ({"blocks": (-1,)}, r"blocks must lie in 0\.\.3, got \(-1,\)"),
        ({"blocks": (1, 1)}, "blocks repeat"),
        ({"update_period": 0}, "update_period 0 must be a multiple of the chunk of 8"),
        ({"update_period": 12}, "update_period 12 must be a multiple of the chunk of 8"),
        ({"update_period": 24}, "a block of 24 tokens would leave the window of 32"),
        ({"rank": 0}, "rank >= 1"),
        ({"lr": -0.1}, "lr >= 0"),
        ({"norm_cap": 0.0}, "norm_cap > 0"),
        ({"max_update_norm": 0.0}, "max_update_norm > 0"),
        ({"betas": (0.9, 1.0)}, "betas must lie in 0..1"),
        ({"betas": (-0.1, 0.9)}, "betas must lie in 0..1"),
        ({"is_whitened": True}, "only a dense level that is written by consolidation can be whitened"),
        ({"gate": 0.9}, "gate 0.9 must lie in 0..1, 1 excluded, and be 0 unless whitened"),
        ({"kind": "dense", "is_whitened": True, "gate": 1.0}, r"gate 1\.0 must lie in 0\.\.1, 1 excluded"),
    ],
)
def test_a_level_that_cannot_exist_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    """Each rule is checked when the config is made, not when the level is first written."""
    level = replace(LEVEL, **changes)
    with pytest.raises(SettingsError, match=message) as caught:
        HopeConfig(MODEL, WINDOW, (level,), 8)
    assert repr(level.name) in caught.value.message


@pytest.mark.parametrize("field", ["lr", "norm_cap", "max_update_norm"])
def test_a_number_that_is_not_one_is_refused(field: str) -> None:
    """NaN passes no comparison, so it must not pass a check that is one."""
    with pytest.raises(SettingsError):
        HopeConfig(MODEL, WINDOW, (replace(LEVEL, **{field: float("nan")}),), 8)


def test_two_levels_of_one_name_are_refused() -> None:
    """State is keyed by level name."""
    with pytest.raises(SettingsError, match="level names must differ"):
        HopeConfig(MODEL, WINDOW, (LEVEL, replace(LEVEL, blocks=(3,))), 8)


def test_a_window_shorter_than_a_chunk_is_refused() -> None:
    """A chunk is computed at once and must see all of itself."""
    with pytest.raises(SettingsError, match="window of 4 tokens is shorter than the chunk of 8"):
        HopeConfig(MODEL, WindowSpec(4, 2), (), 8)


def test_a_config_is_frozen() -> None:
    """What a model is cannot be changed while it is served."""
    config = HopeConfig(MODEL, WINDOW, (LEVEL,), 8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.chunk_size = 16  # type: ignore[misc]
